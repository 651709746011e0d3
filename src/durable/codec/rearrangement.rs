//! Rearrangement of stored accumulators: those of the aggregates that a changed program still has, in its order.
//!
//! Accumulators are found by the names that were stored with them. One whose aggregate is gone is left out; an aggregate
//! that is new gets the accumulator of no records, if it has one. What comes out are rows of the schema that the program's
//! type has but for what [`StoredValue`](super::stored_value::StoredValue) allows to differ. Bytes are moved, not decoded.
//!
//! Invariant: an accumulator goes to the aggregate of its name, or to none.

use std::collections::BTreeSet;

use super::aggregate_names::{
    NameTree, NamedPart, filtered, has_accumulator, is_accumulator, named_parts, names_of, without_names,
};
use super::conversion_refusal::ConversionRefusal;
use super::schema::{Schema, take};

/// The way from stored rows to rows with the accumulators of the program.
pub(super) struct Rearrangement {
    plan: Plan,
    /// The schema of the rearranged rows.
    pub(super) schema: Schema,
    /// The changes, for users.
    pub(super) changes: Vec<String>,
}

/// The way from a part of a stored row to the part of the new one.
enum Plan {
    /// The part stays as it is; its schema.
    Copy(Schema),
    /// The part is a tuple or a struct.
    Parts(Vec<Plan>),
    Option(Box<Plan>),
    List(Box<Plan>),
    /// The part is a tuple of accumulators: the stored ones, and what becomes of them.
    Pick(Vec<Schema>, Vec<PickedSum>),
}

/// The origin of an accumulator.
enum PickedSum {
    /// The stored one with this number.
    Stored(usize, Plan),
    /// That of no records.
    Empty(Vec<u8>),
}

type Planned = Result<(Plan, Schema), ConversionRefusal>;

impl Rearrangement {
    /// Plans the rearrangement of rows of a stored schema. `now` is the schema of the program's rows, with its names.
    pub(super) fn of(stored: &Schema, now: &Schema, names: &NameTree) -> Result<Rearrangement, ConversionRefusal> {
        if *names == NameTree::None && names_of(stored).is_empty() {
            return Ok(Rearrangement { plan: Plan::Copy(Schema::Unit), schema: stored.clone(), changes: Vec::new() });
        }
        let mut planner = Planner { names, changes: BTreeSet::new() };
        let (plan, schema) = planner.row(stored, now, "")?;
        Ok(Rearrangement { plan, schema, changes: planner.changes.into_iter().collect() })
    }

    /// Returns the rearranged bytes of some rows; `None` if they stay as they are.
    pub(super) fn apply(&self, mut bytes: &[u8], rows: u32) -> Result<Option<Vec<u8>>, String> {
        if matches!(self.plan, Plan::Copy(_)) {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(bytes.len());
        for number in 0..rows {
            let why = |why| format!("row {number} of {rows} in the block cannot be rearranged: {why}");
            self.plan.run(&mut bytes, &mut out).map_err(why)?;
        }
        out.extend_from_slice(bytes);
        Ok(Some(out))
    }
}

impl Plan {
    fn run(&self, bytes: &mut &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let all = *bytes;
        let read = |rest: &[u8]| &all[..all.len() - rest.len()];
        match self {
            Plan::Copy(schema) => {
                schema.read(bytes)?;
                out.extend_from_slice(read(bytes));
            }
            Plan::Parts(parts) => parts.iter().try_for_each(|part| part.run(bytes, out))?,
            Plan::Option(inner) => {
                let is_some: bool = take(bytes)?;
                out.extend_from_slice(read(bytes));
                if is_some {
                    inner.run(bytes, out)?;
                }
            }
            Plan::List(inner) => {
                let count: u64 = take(bytes)?;
                out.extend_from_slice(read(bytes));
                for _ in 0..count {
                    inner.run(bytes, out)?;
                }
            }
            Plan::Pick(stored, picked) => {
                let mut sums = Vec::with_capacity(stored.len());
                for schema in stored {
                    let from = *bytes;
                    schema.read(bytes)?;
                    sums.push(&from[..from.len() - bytes.len()]);
                }
                for sum in picked {
                    match sum {
                        PickedSum::Stored(number, plan) => plan.run(&mut &*sums[*number], out)?,
                        PickedSum::Empty(empty) => out.extend_from_slice(empty),
                    }
                }
            }
        }
        Ok(())
    }
}

/// A rearrangement being planned.
struct Planner<'a> {
    names: &'a NameTree,
    changes: BTreeSet<String>,
}

fn copy(schema: &Schema) -> Planned {
    Ok((Plan::Copy(schema.clone()), schema.clone()))
}

fn refusal<T>(why: String, help: &str) -> Result<T, ConversionRefusal> {
    Err(ConversionRefusal { why, help: help.into() })
}

impl Planner<'_> {
    /// Plans a part of a row at a path.
    fn row(&mut self, stored: &Schema, now: &Schema, path: &str) -> Planned {
        if is_accumulator(path) {
            return self.sums(stored, now, self.names);
        }
        if !has_accumulator(path) {
            return copy(stored);
        }
        match (stored, now) {
            (Schema::Option(stored), Schema::Option(now)) => {
                let (plan, schema) = self.row(stored, now, path)?;
                Ok((Plan::Option(Box::new(plan)), Schema::Option(Box::new(schema))))
            }
            (Schema::List(stored), Schema::List(now)) => {
                let (plan, schema) = self.row(stored, now, &format!("{path}[]"))?;
                Ok((Plan::List(Box::new(plan)), Schema::List(Box::new(schema))))
            }
            (Schema::Tuple(parts), Schema::Tuple(now)) if parts.len() == now.len() => {
                let planned = parts.iter().zip(now).enumerate();
                let planned = planned.map(|(at, (part, now))| self.row(part, now, &format!("{path}.{at}")));
                let (plans, schemas) = planned.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
                Ok((Plan::Parts(plans), Schema::Tuple(schemas)))
            }
            (Schema::Struct(name, fields), Schema::Struct(_, now)) if fields.len() == now.len() => {
                let (mut plans, mut schemas) = (Vec::new(), Vec::new());
                for ((field, stored), (_, now)) in fields.iter().zip(now) {
                    let (plan, schema) = self.row(stored, now, &format!("{path}.{field}"))?;
                    plans.push(plan);
                    schemas.push((field.clone(), schema));
                }
                Ok((Plan::Parts(plans), Schema::Struct(name.clone(), schemas)))
            }
            _ => copy(stored),
        }
    }

    /// Plans an accumulator, or a tuple of them.
    fn sums(&mut self, stored: &Schema, now: &Schema, names: &NameTree) -> Planned {
        let known = named_parts(stored);
        match (names, known) {
            (NameTree::One(part), Some(known)) => {
                let (plan, mut schemas) = self.by_name(known, now, std::slice::from_ref(&**part))?;
                Ok((plan, schemas.pop().unwrap_or_default()))
            }
            (NameTree::Tuple(parts), Some(known)) if parts.iter().all(|part| part.name.is_some()) => {
                let (plan, schemas) = self.by_name(known, now, parts)?;
                Ok((plan, Schema::Tuple(schemas)))
            }
            (NameTree::One(part), None) => {
                self.changes
                    .insert(format!("the aggregate is named `{}` now", part.name.as_deref().unwrap_or_default()));
                let now = named_parts(now).and_then(<[_]>::first).map_or(now, |(_, one)| one);
                self.sums(stored, now, &part.inner)
            }
            (NameTree::Tuple(parts), None) => self.by_position(stored, now, parts),
            (NameTree::Filtered(inner), None) => match (filtered(stored), filtered(now)) {
                (Some(sum), Some(now)) => {
                    let (plan, schema) = self.sums(sum, now, inner)?;
                    let passed = vec![Plan::Copy(Schema::Signed(64)), plan];
                    let plan = Plan::Parts(vec![Plan::Option(Box::new(Plan::Parts(passed)))]);
                    Ok((plan, with_filtered(stored, schema)))
                }
                _ => copy(stored),
            },
            (NameTree::None, None) if names_of(stored).is_empty() => copy(stored),
            _ => {
                let names = known.unwrap_or_default().iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>();
                let names = if names.is_empty() { names_of(stored) } else { names.join(", ") };
                refusal(
                    format!("the stored aggregates are named {names}, and the program's have no names"),
                    "keep the names: write `each.named(\"…\", …)` at each aggregate",
                )
            }
        }
    }

    /// Plans a tuple whose accumulators are found by their positions.
    fn by_position(&mut self, stored: &Schema, now: &Schema, parts: &[NamedPart]) -> Planned {
        let sums = match stored {
            Schema::Tuple(sums) if sums.len() == parts.len() => sums,
            _ if parts.iter().all(|part| part.name.is_none()) => return copy(stored),
            _ => {
                let count = if let Schema::Tuple(sums) = stored { sums.len() } else { 1 };
                return refusal(
                    format!("{count} aggregates are stored without names, and the program has {}", parts.len()),
                    "run once with the aggregates of before, in their order, with a name at each \
                     (`each.named(\"…\", …)`); then add and remove some",
                );
            }
        };
        let mut planned = Vec::new();
        for ((number, sum), part) in sums.iter().enumerate().zip(parts) {
            let now = match (now, named_parts(now)) {
                (_, Some(now)) => now.get(number).map(|(_, now)| now),
                (Schema::Tuple(now), _) => now.get(number),
                _ => None,
            };
            planned.push(self.sums(sum, now.unwrap_or(&Schema::Unknown), &part.inner)?);
        }
        let names: Vec<_> = parts.iter().filter_map(|part| part.name.as_deref()).collect();
        if !names.is_empty() {
            self.changes.insert(format!("the aggregates are named {} now, in their order", names.join(", ")));
        }
        let (plans, schemas) = planned.into_iter().unzip();
        Ok((Plan::Parts(plans), Schema::Tuple(schemas)))
    }

    /// Plans accumulators that are found by name; returns their schemas.
    fn by_name(
        &mut self,
        stored: &[(String, Schema)],
        now: &Schema,
        parts: &[NamedPart],
    ) -> Result<(Plan, Vec<Schema>), ConversionRefusal> {
        let nothing = Vec::new();
        let now = named_parts(now).unwrap_or(&nothing);
        let named = |name: &str| stored.iter().position(|(known, _)| known == name);
        let (mut picked, mut schemas, mut added, mut used) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (part, (name, now)) in parts.iter().zip(now) {
            match named(name).or_else(|| part.earlier.iter().find_map(|old| named(old))) {
                Some(number) => {
                    let (old, sum) = &stored[number];
                    if old != name {
                        self.changes.insert(format!("the aggregate `{name}` is what `{old}` was"));
                    }
                    let (plan, schema) = self.sums(sum, now, &part.inner)?;
                    picked.push(PickedSum::Stored(number, plan));
                    schemas.push(schema);
                    used.push(number);
                }
                None => {
                    let Some(empty) = &part.empty else {
                        return refusal(
                            format!("the aggregate `{name}` is new, and has no value of no records"),
                            &format!(
                                "write `each.named(\"{name}\", each.if_any(…))`, whose value is `None` in windows that \
                                 have none of its records; if it is stored under another name, write `.was(\"…\")` \
                                 behind it"
                            ),
                        );
                    };
                    let schema = without_names(now);
                    self.changes.insert(match schema {
                        Schema::Unit => format!("the aggregate `{name}` is new"),
                        _ => format!(
                            "the aggregate `{name}` is new, and has the records that come after the snapshot: it is \
                             partial in windows that had begun"
                        ),
                    });
                    picked.push(PickedSum::Empty(empty.clone()));
                    added.push((name, schema.clone()));
                    schemas.push(schema);
                }
            }
        }
        for (old, sum) in stored.iter().enumerate().filter(|(at, _)| !used.contains(at)).map(|(_, stored)| stored) {
            let sum = without_names(sum);
            if let Some((new, _)) = added.iter().find(|(_, new)| *new == sum && *new != Schema::Unit) {
                return refusal(
                    format!("the aggregate `{old}` is stored and gone, and `{new}` is new and keeps the same"),
                    &format!(
                        "write `.was(\"{old}\")` behind `each.named(\"{new}\", …)` if it is the same; otherwise run once \
                         without both, then add `{new}`"
                    ),
                );
            }
            self.changes.insert(format!("the aggregate `{old}` is dropped"));
        }
        if !used.is_sorted() {
            self.changes.insert("the aggregates have another order".into());
        }
        Ok((Plan::Pick(stored.iter().map(|(_, sum)| sum.clone()).collect(), picked), schemas))
    }
}

/// Returns the schema of an aggregate of some records, with another accumulator in it.
fn with_filtered(stored: &Schema, sum: Schema) -> Schema {
    match stored {
        Schema::Struct(name, fields) => {
            let field = fields.first().map_or_else(String::new, |(field, _)| field.clone());
            let passed = Schema::Option(Box::new(Schema::Tuple(vec![Schema::Signed(64), sum])));
            Schema::Struct(name.clone(), vec![(field, passed)])
        }
        other => other.clone(),
    }
}
