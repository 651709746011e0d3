//! Flags that all benchmarks have.

use clap::Args;

/// Flags of every benchmark, beside its own.
#[derive(Clone, Debug, Args)]
pub struct BenchFlags {
    /// Print one JSON object a line, for plotting, instead of a table
    #[arg(long)]
    pub json: bool,

    /// Make one run in this process: for the benchmark itself
    #[arg(long, hide = true, num_args = 1.., value_name = "VALUE")]
    one: Vec<String>,

    /// Passed by cargo to benchmarks
    #[arg(long, hide = true)]
    bench: bool,
}

impl BenchFlags {
    /// Returns the values that name the one run that this process is to make; `None` if it is to measure all that was asked
    /// for. A benchmark whose runs are made in its own process takes no value.
    ///
    /// # Errors
    /// Fails if the number of values is another one.
    pub fn one<const N: usize>(&self) -> Result<Option<&[String; N]>, String> {
        if self.one.is_empty() {
            return Ok(None);
        }
        let values = <&[String; N]>::try_from(&self.one[..]);
        values.map(Some).map_err(|_| format!("--one takes {N} values, and {} were given", self.one.len()))
    }
}
