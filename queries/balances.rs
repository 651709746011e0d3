//! A consistency check: each transaction credits its account and debits its merchant, so the total over all balances
//! is 0 at every moment. This query checks that at every epoch.
//!
//! Engines that publish intermediate states fail it: see "Internal consistency in streaming systems" (J. Brandon, 2021).
//!
//! The balances can be read while it runs, as the view `balances`, by their holder.
//!
//! Try it: `tidegate balances --csv transactions.csv --until-end -w 2`

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Serialize};
use tidegate::cli::{self, QueryArgs};
use tidegate::time::Epoch;
use tidegate::{CompactString, Error, Result, Transaction, Window};
use timely::dataflow::operators::vec::Map;

/// Balances of accounts and merchants, whose total is checked to be 0 at every epoch
///
/// Each transaction credits its account and debits its merchant. --out gets every change of a balance, with a last
/// column `diff`: 1 for a new balance, -1 for one that it replaces. The total is computed twice: by the query itself,
/// and from the published balances. A total that is not 0 ends the run with an error.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  tidegate balances --csv transactions.csv --until-end -w 2 --out balances.csv
  tidegate balances --brokers localhost:9092 --out kafka:balances"
)]
struct Arguments {
    #[command(flatten)]
    query: QueryArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Balance {
    holder: CompactString,
    balance_cents: i128,
}

/// The results of the checks so far.
#[derive(Clone, Copy, Debug, Default)]
struct Checked {
    epochs: u64,
    changed: u64,
    balances: i64,
    greatest: u64,
    total: i128,
}

impl Checked {
    /// Applies an epoch's changes, and checks that all balances still add up to 0.
    fn epoch(&mut self, epoch: Epoch, changes: &[(Balance, isize)]) -> Result<()> {
        for (balance, diff) in changes {
            self.total += balance.balance_cents * *diff as i128;
            self.balances += *diff as i64;
            self.changed += u64::from(*diff > 0);
        }
        self.epochs += 1;
        self.greatest = self.greatest.max(self.balances.unsigned_abs());
        if self.total != 0 {
            let error = Error::new(format!("the balances add up to {} cents instead of 0", self.total));
            return Err(error.at(format!("epoch {epoch}")).help("this is a fault in Tidegate: please report it"));
        }
        Ok(())
    }
}

/// Runs the query as the command line says.
pub(crate) fn main() -> ExitCode {
    // Short epochs, because every epoch is checked.
    let adjust = |command: clap::Command| {
        let command = command.mut_arg("epoch", |epoch| epoch.default_value("5ms"));
        command.mut_arg("in_flight", |in_flight| in_flight.default_value("2MiB"))
    };
    cli::start_with(adjust, |arguments: &Arguments| run(&arguments.query))
}

fn run(query: &QueryArgs) -> Result<u8> {
    let transactions = query.source(|t: &Transaction| t.at_ms)?;
    let out = query.out()?;
    for (flag, given) in [("--late", query.late.is_some()), ("--allowed-lateness", !query.allowed_lateness.is_zero())] {
        if given {
            let error = Error::usage(format!("{flag}: no record is ever late for a balance of all time"));
            return Err(error.help("leave the flag away"));
        }
    }
    let checked = Arc::new(Mutex::new(Checked::default()));
    let watched = Arc::clone(&checked);
    let code = query.run("balances", move |flow| {
        let balances = flow
            .read("transactions", &transactions)
            .flat_map(|t| [(t.account, i128::from(t.amount_cents)), (t.merchant, -i128::from(t.amount_cents))])
            .key_by(|entry| entry.0.clone())
            .window(Window::global())
            .aggregate("balances", |each| each.sum(|entry| entry.1))
            .on_change()
            .map(|row| Balance { holder: row.key, balance_cents: row.value });
        let checked = Arc::clone(&watched);
        balances.clone().for_each_epoch("check", move |epoch, changes| {
            checked.lock().unwrap_or_else(PoisonError::into_inner).epoch(epoch, changes)
        });
        balances.clone().through(total).for_each_epoch("total", |epoch, total| match total.first() {
            None => Ok(()),
            Some((cents, _)) => {
                let error = Error::new(format!("the query's own total of all balances became {cents} cents"));
                Err(error.at(format!("epoch {epoch}")).help("this is a fault in Tidegate: please report it"))
            }
        });
        balances.clone().view("balances");
        balances.write("balances", &out);
    })?;
    let Checked { epochs, changed, greatest, total, .. } = *checked.lock().unwrap_or_else(PoisonError::into_inner);
    cli::note(format_args!(
        "{epochs} epochs checked, {changed} balances changed, {greatest} balances at most; every total {total}"
    ));
    Ok(code)
}

/// Computes the total over all balances, kept up to date by differential dataflow: one row while it is not 0, none
/// while it is.
fn total(balances: VecCollection<'_, u64, Balance>) -> VecCollection<'_, u64, i128> {
    let widened = balances.inner.map(|(balance, epoch, diff)| (balance, epoch, diff as i128)).as_collection();
    widened.explode(|balance: Balance| [((), balance.balance_cents)]).count().map(|((), cents)| cents)
}
