//! The included queries that a build has with the feature `queries`: all but `account_totals`, which the demo needs.
//!
//! Each is compiled for its own types, which takes most of a build of them; so a first build leaves them out.

use crate::QueryMain;

mod account_sessions;
mod balances;
mod category_revenue;
mod fraud_ring;
mod late_report;
#[cfg(feature = "registry")]
mod orders_enriched;
mod payments_matched;
mod silent_accounts;
mod spend_by_minute;
mod top_spenders;
mod velocity_alerts;

/// The queries, by name.
pub(crate) const QUERIES: &[(&str, QueryMain)] = &[
    ("account_sessions", account_sessions::main),
    ("balances", balances::main),
    ("category_revenue", category_revenue::main),
    ("fraud_ring", fraud_ring::main),
    ("late_report", late_report::main),
    #[cfg(feature = "registry")]
    ("orders_enriched", orders_enriched::main),
    ("payments_matched", payments_matched::main),
    ("silent_accounts", silent_accounts::main),
    ("spend_by_minute", spend_by_minute::main),
    ("top_spenders", top_spenders::main),
    ("velocity_alerts", velocity_alerts::main),
];
