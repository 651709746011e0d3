//! `tidegate plot`: draws the results of a window query as a picture (SVG).
//!
//! A CSV file has a row for each window and key. The picture has event time from left to right, and upwards the values of
//! a column: their sum over all keys, or with `--by` a line for each of the greatest keys. Rows of one window and key are
//! added up. The picture is drawn by `svg`, and needs nothing else to be shown.

mod svg;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use self::svg::{PlotChart, PlotSeries};
use super::note;
use crate::error::{Error, Result};
use crate::time::EventTime;

/// Number of lines with `--by`, by default.
const LINES: usize = 8;
/// Greatest number that is drawn: sums of such numbers are finite.
const GREATEST: f64 = 1e290;
/// Names of columns with times, the best one first.
const TIMES: [&str; 7] = ["window_end", "window_start", "end", "start", "session_end", "time", "at"];

const EXAMPLES: &str = "Examples:
  tidegate plot totals.csv --out totals.svg
  tidegate plot totals.csv --out greatest.svg --y sum_cents --by account

The times are of window_end, or of the first column that has times; the values are of the first column that has
numbers. A row that lacks one of them is left out.";

/// Draws the results of a window query as a picture (SVG).
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlotArgs {
    /// CSV file with a header, as queries write it
    #[arg(value_name = "FILE.csv")]
    pub file: PathBuf,

    /// File of the picture; it is replaced
    #[arg(long, value_name = "FILE.svg")]
    pub out: PathBuf,

    /// Column of the times
    #[arg(long, value_name = "COLUMN")]
    pub x: Option<String>,

    /// Column of the values
    #[arg(long, value_name = "COLUMN")]
    pub y: Option<String>,

    /// Column of the keys: draws a line for each of the greatest, instead of their sum
    #[arg(long, value_name = "COLUMN")]
    pub by: Option<String>,

    /// Greatest number of lines
    #[arg(long, value_name = "N", default_value_t = LINES, requires = "by")]
    pub lines: usize,
}

/// Runs `tidegate plot`; returns the exit code: 1 if rows were left out.
///
/// # Errors
/// Fails if the file cannot be read, has no such columns or no rows with times and values, or if the picture cannot be
/// written.
pub fn plot(args: &PlotArgs) -> Result<u8> {
    let (chart, left_out) = chart(args)?;
    write_picture(&args.out, &chart)?;
    if left_out > 0 {
        let s = if left_out == 1 { "row has" } else { "rows have" };
        note(format_args!("{}: {left_out} {s} no time or no value in these columns", args.file.display()));
    }
    Ok(u8::from(left_out > 0))
}

/// Draws the file of a query's results beside it, as far as there are any.
pub(super) fn plot_results(file: &Path, out: &Path, y: &str) -> Result<()> {
    let y = Some(y.to_owned());
    let args = PlotArgs { file: file.to_owned(), out: out.to_owned(), x: None, y, by: None, lines: LINES };
    write_picture(out, &chart(&args)?.0)
}

fn write_picture(out: &Path, chart: &PlotChart) -> Result<()> {
    let failed = |why| Error::new("cannot write the picture").at(out.display()).because(why);
    fs::write(out, chart.svg()).map_err(failed)
}

/// The values of a key, or of all keys, by time in milliseconds.
type ValuesByTime = BTreeMap<i64, f64>;

/// Reads a file; returns the chart, and the number of rows that lack a time or a value.
fn chart(args: &PlotArgs) -> Result<(PlotChart, u64)> {
    let failed = |why: &dyn std::fmt::Display| Error::new("cannot plot the file").at(args.file.display()).because(why);
    let mut reader = csv::Reader::from_path(&args.file).map_err(|why| failed(&why))?;
    let header: Vec<String> = reader.headers().map_err(|why| failed(&why))?.iter().map(str::to_owned).collect();
    let mut rows = reader.into_records();
    let first = rows.next().transpose().map_err(|why| failed(&why))?;
    let Some(first) = first else { return Err(failed(&"it has no rows").help("let the query write some first")) };
    let columns = Columns::choose(args, &header, &first).map_err(|why| {
        failed(&why).help(format!("choose among its columns with --x, --y and --by: {}", header.join(", ")))
    })?;
    let (mut by_key, mut left_out) = (HashMap::<String, ValuesByTime>::new(), 0);
    for row in std::iter::once(Ok(first)).chain(rows) {
        let row = row.map_err(|why| failed(&why))?;
        let (time, value) = (row.get(columns.x).and_then(time_of), row.get(columns.y).and_then(number_of));
        let (Some(time), Some(value)) = (time, value) else {
            left_out += 1;
            continue;
        };
        let key = columns.by.and_then(|by| row.get(by)).unwrap_or_default();
        if !by_key.contains_key(key) {
            by_key.insert(key.to_owned(), ValuesByTime::new());
        }
        if let Some(values) = by_key.get_mut(key) {
            *values.entry(time).or_default() += value;
        }
    }
    if by_key.is_empty() {
        let why = format!("no row has a time in `{}` and a number in `{}`", header[columns.x], header[columns.y]);
        return Err(failed(&why).help("choose other columns with --x and --y"));
    }
    Ok((columns.chart(args, &header, by_key), left_out))
}

/// The columns that are drawn, by their numbers.
struct Columns {
    x: usize,
    y: usize,
    by: Option<usize>,
}

impl Columns {
    /// Finds the columns that were asked for, and chooses the others by the first row.
    fn choose(args: &PlotArgs, header: &[String], first: &csv::StringRecord) -> std::result::Result<Columns, String> {
        let named = |name: &String| {
            let found = header.iter().position(|known| known == name);
            found.ok_or_else(|| format!("it has no column `{name}`"))
        };
        let (asked_x, asked_y) = (args.x.as_ref().map(named).transpose()?, args.y.as_ref().map(named).transpose()?);
        let by = args.by.as_ref().map(named).transpose()?;
        let is_time = |at: &usize| first.get(*at).is_some_and(|text| text.contains('-') && time_of(text).is_some());
        let usual = || TIMES.iter().filter_map(|name| header.iter().position(|known| known == name)).find(is_time);
        let x =
            asked_x.or_else(usual).or_else(|| (0..header.len()).find(is_time)).ok_or("it has no column of times")?;
        let is_number = |at: &usize| *at != x && Some(*at) != by && first.get(*at).and_then(number_of).is_some();
        let y = asked_y.or_else(|| (0..header.len()).find(is_number)).ok_or("it has no column of numbers")?;
        Ok(Columns { x, y, by })
    }

    /// Makes the chart of the values: of the greatest keys, if there are too many.
    fn chart(&self, args: &PlotArgs, header: &[String], by_key: HashMap<String, ValuesByTime>) -> PlotChart {
        let keys = by_key.len();
        let mut series: Vec<PlotSeries> = by_key
            .into_iter()
            .map(|(name, values)| PlotSeries { name, points: values.into_iter().collect() })
            .collect();
        series.sort_by(|one, other| {
            let sum = |series: &PlotSeries| series.points.iter().map(|(_, value)| value).sum::<f64>();
            sum(other).total_cmp(&sum(one)).then_with(|| one.name.cmp(&other.name))
        });
        series.truncate(args.lines.max(1));
        let file = args.file.file_name().unwrap_or_default().to_string_lossy();
        let y = &header[self.y];
        let title = match self.by {
            None => format!("{file}: {y}, by {}", header[self.x]),
            Some(by) if keys > series.len() => {
                format!("{file}: {y}, by {}; the {} greatest of {keys} by {}", header[self.x], series.len(), header[by])
            }
            Some(by) => format!("{file}: {y}, by {} and {}", header[self.x], header[by]),
        };
        PlotChart { title, series }
    }
}

/// Parses a time as queries write it, or milliseconds since 1970.
fn time_of(text: &str) -> Option<i64> {
    text.parse::<EventTime>().ok().map(EventTime::millis)
}

fn number_of(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|number| number.abs() <= GREATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "window_start,window_end,account,count,sum_cents\n\
                        2026-01-31T10:00:00Z,2026-01-31T10:00:10Z,<b>a</b>,2,-30\n\
                        2026-01-31T10:00:00Z,2026-01-31T10:00:10Z,b,5,20\n\
                        2026-01-31T10:00:10Z,2026-01-31T10:00:20Z,<b>a</b>,4,70\n";

    fn of(rows: &str, adjust: impl FnOnce(PlotArgs) -> PlotArgs) -> Result<(PlotChart, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("totals.csv"), folder.path().join("totals.svg"));
        fs::write(&file, rows).unwrap();
        chart(&adjust(PlotArgs { file, out, x: None, y: None, by: None, lines: LINES }))
    }

    fn points(chart: &PlotChart) -> Vec<(&str, Vec<(i64, f64)>)> {
        let first = 1_769_853_610_000;
        let points = |series: &PlotSeries| series.points.iter().map(|(time, value)| (time - first, *value)).collect();
        chart.series.iter().map(|series| (series.name.as_str(), points(series))).collect()
    }

    #[test]
    fn values_are_added_up_by_window_or_by_window_and_key() {
        let (sums, left_out) = of(ROWS, |args| args).unwrap();
        assert_eq!((points(&sums), left_out), (vec![("", vec![(0, 7.0), (10_000, 4.0)])], 0));
        assert_eq!(sums.title, "totals.csv: count, by window_end");
        let column = |name: &str| Some(name.to_owned());
        let by = of(ROWS, |args| PlotArgs { y: column("sum_cents"), by: column("account"), ..args }).unwrap().0;
        assert_eq!(points(&by), [("<b>a</b>", vec![(0, -30.0), (10_000, 70.0)]), ("b", vec![(0, 20.0)])]);
        let one = of(ROWS, |args| PlotArgs { by: column("account"), lines: 1, x: column("window_start"), ..args });
        let one = one.unwrap().0;
        assert_eq!(points(&one), [("<b>a</b>", vec![(-10_000, 2.0), (0, 4.0)])]);
        assert!(one.title.ends_with("the 1 greatest of 2 by account"), "{}", one.title);
    }

    #[test]
    fn what_cannot_be_drawn_is_said() {
        let said = |rows: &str, x: Option<&str>| {
            let x = x.map(str::to_owned);
            of(rows, |args| PlotArgs { x, ..args }).unwrap_err().to_string()
        };
        assert!(said("window_end,count\n", None).contains("it has no rows"));
        assert!(said(ROWS, Some("when")).contains("no column `when`"));
        assert!(said("a,b\nx,1\n", None).contains("no column of times"));
        assert!(said("window_end,b\n2026-01-31T10:00:00Z,x\n", None).contains("no column of numbers"));
        let (_, left_out) = of(&format!("{ROWS}x,y,z,1,1\n"), |args| args).unwrap();
        assert_eq!(left_out, 1);
    }
}
