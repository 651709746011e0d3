//! The laws of all aggregates, on random records of adversarial values: an accumulator is a function of the records
//! as a multiset, and its value is that of a naive computation on the sorted records.
//!
//! `TIDEGATE_SEED=n` runs the one case of seed `n`; `TIDEGATE_CASES=n` runs `n` cases. A seed that fails is printed.

use std::cmp::Reverse;

use fastrand::Rng;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

use super::quotient::tests::{assert_nearest, fraction};
use super::*;
use crate::durable::codec::{Codec, Postcard, Schema};
use crate::record::{Decimal, Origin, Real};
use crate::time::EventTime;

/// The data of the tests' records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Deal {
    number: i64,
    small: i8,
    text: String,
    real: Real,
}

type Deals = Vec<Event<Deal>>;

fn whole(deal: &Deal) -> Deal {
    deal.clone()
}

/// Returns few or many records, with many ties of values, of times and of positions.
fn deals(random: &mut Rng) -> Deals {
    let count = if random.u8(0..10) == 0 { random.usize(1000..1600) } else { random.usize(1..40) };
    let ends = [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX - 1, i64::MAX];
    let (times, places, spread) = (random.i64(1..20), random.u64(1..2000), random.u32(1..64));
    let deal = |_| {
        let number = if random.u8(0..4) == 0 { *random.choice(&ends).unwrap() } else { random.i64(..) >> spread };
        let real = *random.choice(&[0.0, -0.0, f64::NAN, -f64::NAN, 1.5, f64::NEG_INFINITY]).unwrap();
        let text = format!("{}", random.u16(..) >> random.u8(0..16));
        let data = Deal { number, small: random.i8(..), text, real: Real::new(real) };
        let origin = Origin {
            source: random.u16(0..2),
            unresolved: random.bool(),
            raised: false,
            partition: random.u32(0..3),
            offset: random.u64(0..places),
        };
        let (time, watermark) = (EventTime::from_millis(random.i64(0..times)), EventTime::from_millis(random.i64(..)));
        Event { time, watermark, origin, data }
    };
    (0..count).map(deal).collect()
}

/// Accumulates records in any order: one by one, or in parts that are merged.
fn folded<A: Aggregate<Deal>>(aggregate: &A, mut deals: Deals, random: &mut Rng) -> A::Sum {
    random.shuffle(&mut deals);
    let mut parts = deals.iter().map(|deal| aggregate.lift(aggregate.part(deal))).collect::<Vec<_>>();
    // One by one into some of the parts.
    let alone = random.usize(..parts.len());
    for deal in deals.drain(..alone) {
        let into = alone + random.usize(..parts.len() - alone);
        aggregate.absorb(&mut parts[into], aggregate.part(&deal));
    }
    parts.drain(..alone);
    while parts.len() > 1 {
        let part = parts.swap_remove(random.usize(..parts.len()));
        let into = random.usize(..parts.len());
        parts[into].merge(&part);
    }
    parts.pop().unwrap()
}

fn merged<S: Accumulator>(a: &S, b: &S) -> S {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

fn written<S: Accumulator>(sum: &S) -> Vec<u8> {
    postcard::to_allocvec(sum).unwrap()
}

/// Asserts that all sums are the same value, with the same serialization.
fn same<S: Accumulator>(what: &str, a: &S, b: &S, seed: u64) {
    assert_eq!(a, b, "{what}, TIDEGATE_SEED={seed}");
    assert_eq!(written(a), written(b), "{what} as it is written, TIDEGATE_SEED={seed}");
}

fn seeds() -> Vec<u64> {
    let asked = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match asked("TIDEGATE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=asked("TIDEGATE_CASES").unwrap_or(30)).collect(),
    }
}

/// Checks the laws for an aggregate, and compares its value with `expected` of the records in order of their
/// positions.
fn laws<A: Aggregate<Deal>>(build: impl Fn(Each<Deal>) -> A, expected: impl Fn(&[Event<Deal>]) -> A::Value) {
    let aggregate = build(Each::new());
    assert_eq!(aggregate.check(), Ok(()));
    assert_eq!(Codec::<A::Sum>::check(&Postcard), Ok(()), "a snapshot cannot keep it");
    let schema = Schema::of::<A::Sum>();
    for seed in seeds() {
        let mut random = Rng::with_seed(seed);
        let [a, b, c] = [(); 3].map(|()| deals(&mut random));
        let mut all = [a.clone(), b.clone(), c.clone()].concat();
        let [a, b, c] = [a, b, c].map(|deals| folded(&aggregate, deals, &mut random));

        same("a+b is b+a", &merged(&a, &b), &merged(&b, &a), seed);
        let whole = merged(&merged(&a, &b), &c);
        same("(a+b)+c is a+(b+c)", &whole, &merged(&a, &merged(&b, &c)), seed);
        for deal in all.iter().take(20) {
            let mut absorbed = a.clone();
            aggregate.absorb(&mut absorbed, aggregate.part(deal));
            same("to absorb is to merge", &absorbed, &merged(&a, &aggregate.lift(aggregate.part(deal))), seed);
        }
        for _ in 0..3 {
            same("any order is the same", &whole, &folded(&aggregate, all.clone(), &mut random), seed);
        }

        let mut left = whole.clone();
        if A::Sum::INVERTIBLE && left.unmerge(&b) {
            same("(a+b+c)-b is a+c", &left, &merged(&a, &c), seed);
            assert!(!left.unmerge(&c) || left == a, "(a+c)-c is a, TIDEGATE_SEED={seed}");
        }
        if let Some(empty) = aggregate.empty() {
            same("nothing and a is a", &merged(&empty, &a), &a, seed);
            same("a and nothing is a", &merged(&a, &empty), &a, seed);
            assert!(aggregate.value(0, &empty).is_ok(), "nothing has no value");
        }

        let (bytes, read) = (written(&whole), postcard::from_bytes::<A::Sum>(&written(&whole)).unwrap());
        same("what is written can be read", &whole, &read, seed);
        let mut rest = &bytes[..];
        assert!(schema.read(&mut rest).is_ok() && rest.is_empty(), "it cannot be shown, TIDEGATE_SEED={seed}");

        all.sort_by(|a, b| (a.time, a.origin.tie_breaker(), &a.data).cmp(&(b.time, b.origin.tie_breaker(), &b.data)));
        let value = aggregate.value(all.len() as i64, &whole).unwrap();
        assert_eq!(value, expected(&all), "TIDEGATE_SEED={seed}");
    }
}

fn sorted<V: Ord>(deals: &[Event<Deal>], of: impl Fn(&Deal) -> V) -> Vec<V> {
    let mut values = deals.iter().map(|deal| of(&deal.data)).collect::<Vec<_>>();
    values.sort();
    values
}

fn kinds<V: Ord>(deals: &[Event<Deal>], of: impl Fn(&Deal) -> V) -> Vec<V> {
    let mut values = sorted(deals, of);
    values.dedup();
    values
}

#[test]
fn counts_and_sums() {
    let sum = |deals: &[Event<Deal>]| deals.iter().map(|deal| i128::from(deal.data.number)).sum::<i128>();
    laws(|each| (each.count(), each.sum(|t| t.number)), |all| (all.len() as i64, sum(all)));
    let wide = |t: &Deal| i128::from(t.number) << 50;
    laws(|each| each.sum(move |t: &Deal| wide(t)), |all| all.iter().map(|deal| wide(&deal.data)).sum());
    let decimal = |t: &Deal| Decimal::new(t.number, 4);
    let ten_thousandths = |all: &[Event<Deal>]| Decimal::from_digits(sum(all), 4).unwrap();
    laws(|each| each.sum(move |t: &Deal| decimal(t)), ten_thousandths);
    // Among them are numbers that are not finite; those that are finite cancel.
    let rounded = |all: &[Event<Deal>], of: fn(&Deal) -> f64| {
        let numbers = all.iter().map(|deal| of(&deal.data));
        match numbers.clone().filter(|number| !number.is_finite()).fold(0.0, |sum, number| sum + number) {
            0.0 => Real::new(numbers.filter_map(BigRational::from_float).sum::<BigRational>().to_f64().unwrap()),
            beyond => Real::new(beyond),
        }
    };
    laws(|each| each.sum(|t| t.real), |all| rounded(all, |t| t.real.get()));
    let tenths: fn(&Deal) -> f64 = |t| f64::from(t.small) / 10.0 + t.number as f64;
    laws(|each| each.sum(move |t: &Deal| Real::new(tenths(t))), |all| rounded(all, tenths));
    laws(
        |each| each.mean(|t| t.small),
        |all| Real::new(all.iter().map(|deal| f64::from(deal.data.small)).sum::<f64>() / all.len() as f64),
    );
}

#[test]
fn the_ends() {
    laws(|each| each.min(|t| t.text.clone()), |all| sorted(all, |t| t.text.clone())[0].clone());
    laws(|each| each.max(|t| t.number), |all| sorted(all, |t| t.number)[all.len() - 1]);
    laws(
        |each| (each.min(|t| t.real), each.max(|t| t.real)),
        |all| {
            let reals = sorted(all, |t| t.real);
            (reals[0], reals[reals.len() - 1])
        },
    );
    laws(|each| (each.first(whole), each.last(whole)), |all| (all[0].data.clone(), all[all.len() - 1].data.clone()));
}

#[test]
fn the_ends_by_another_value() {
    // Of several that are equal, `min_by_key` finds the first.
    laws(
        |each| each.arg_min(|t| t.small, whole),
        |all| all.iter().min_by_key(|deal| deal.data.small).unwrap().data.clone(),
    );
    laws(
        |each| each.arg_max(|t| t.number, whole),
        |all| all.iter().min_by_key(|deal| Reverse(deal.data.number)).unwrap().data.clone(),
    );
    laws(
        |each| each.arg_max(|t| t.real, whole),
        |all| all.iter().min_by_key(|deal| Reverse(deal.data.real)).unwrap().data.clone(),
    );
}

#[test]
fn more_of_the_ends() {
    for most in [1, 2, 7, 100, 5000] {
        let greatest = move |all: &[Event<Deal>]| sorted(all, |t| t.number).into_iter().rev().take(most).collect();
        laws(move |each| each.top(most, |t| t.number), greatest);
        let least = move |all: &[Event<Deal>]| sorted(all, |t| t.text.clone()).into_iter().take(most).collect();
        laws(move |each| each.bottom(most, |t| t.text.clone()), least);
    }
    laws(
        |each| each.bottom(3, |t| (t.real, t.small)),
        |all| sorted(all, |t| (t.real, t.small)).into_iter().take(3).collect(),
    );
}

/// The lesser limit applies if it was changed while a window was open.
#[test]
fn those_of_two_numbers_of_ends_are_of_the_lesser() {
    for seed in seeds() {
        let mut random = Rng::with_seed(seed);
        let [few, many] = [(); 2].map(|()| Each::<Deal>::new().top(random.usize(1..20), |t: &Deal| t.number));
        let [a, b, c] = [(); 3].map(|()| deals(&mut random));
        let mut all = [a.clone(), b.clone(), c.clone()].concat();
        let [a, b, c] = [(a, few), (b, many), (c, many)].map(|(deals, top)| folded(&top, deals, &mut random));
        same("a+b is b+a", &merged(&a, &b), &merged(&b, &a), seed);
        let whole = merged(&merged(&a, &b), &c);
        same("(a+b)+c is a+(b+c)", &whole, &merged(&a, &merged(&b, &c)), seed);
        same("any order is the same", &whole, &merged(&merged(&b, &c), &a), seed);
        all.sort_by_key(|deal| Reverse(deal.data.number));
        let numbers = all.iter().map(|deal| deal.data.number).take(few.most.min(many.most)).collect::<Vec<_>>();
        assert_eq!(Aggregate::<Deal>::value(&many, all.len() as i64, &whole), Ok(numbers), "TIDEGATE_SEED={seed}");
        let mut absorbed = b.clone();
        let part = few.part(&all[0]);
        few.absorb(&mut absorbed, part);
        same("to absorb is to merge", &absorbed, &merged(&b, &Aggregate::<Deal>::lift(&few, part)), seed);
    }
}

#[test]
fn kinds_of_values() {
    laws(|each| each.count_distinct(|t| t.text.clone()), |all| kinds(all, |t| t.text.clone()).len() as i64);
    laws(
        |each| (each.distinct(|t| t.small), each.distinct(|t| t.real)),
        |all| (kinds(all, |t| t.small), kinds(all, |t| t.real)),
    );
}

#[test]
fn about_how_many_kinds_of_values() {
    let within = |estimate: i64, kinds: usize| {
        let near = if kinds > 1024 { 0.04 } else { 0.0 };
        assert!((estimate as f64 / kinds as f64 - 1.0).abs() <= near, "{estimate} for {kinds}");
        estimate
    };
    laws(
        |each| each.approx_count_distinct(|t| t.text.clone()),
        |all| {
            // The estimate has its own tests: here it must be near, and a function of the set.
            let values = kinds(all, |t| t.text.clone());
            let aggregate = Each::<Deal>::new().approx_count_distinct(|t: &Deal| t.text.clone());
            let sum = folded(&aggregate, all.to_vec(), &mut Rng::with_seed(0));
            same("twice is once", &merged(&sum, &sum), &sum, 0);
            within(Aggregate::<Deal>::value(&aggregate, 0, &sum).unwrap(), values.len())
        },
    );
    laws(|each| each.approx_count_distinct(|t| t.real), |all| kinds(all, |t| t.real).len() as i64);
    laws(
        |each| each.approx_count_distinct(|t| (t.number, t.text.clone(), t.small)),
        |all| {
            let values = kinds(all, |t| (t.number, t.text.clone(), t.small));
            let aggregate = Each::<Deal>::new().approx_count_distinct(|t: &Deal| (t.number, t.text.clone(), t.small));
            let mut sum = aggregate.lift(aggregate.part(&all[0]));
            all.iter().for_each(|deal| aggregate.absorb(&mut sum, aggregate.part(deal)));
            within(Aggregate::<Deal>::value(&aggregate, 0, &sum).unwrap(), values.len())
        },
    );
}

/// Returns the number at a quantile that is given as a fraction.
fn ranked(numbers: &[i64], (part, of): (usize, usize)) -> i64 {
    numbers[(part * numbers.len()).div_ceil(of).max(1) - 1]
}

#[test]
fn quantiles_of_numbers() {
    let quantiles = [(0, 1), (1, 100), (1, 4), (1, 2), (9, 10), (999, 1000), (1, 1)];
    let fractions = quantiles.map(|(part, of)| part as f64 / of as f64);
    // Small numbers are exact.
    laws(
        |each| each.quantiles(fractions, |t| t.small),
        |all| {
            let numbers = sorted(all, |t| i64::from(t.small));
            quantiles.iter().map(|quantile| ranked(&numbers, *quantile)).collect()
        },
    );
    for (number, quantile) in quantiles.iter().enumerate() {
        laws(
            |each| each.quantile(fractions[number], |t| t.number),
            |all| {
                let numbers = sorted(all, |t| t.number);
                let aggregate = Each::<Deal>::new().quantile(fractions[number], |t: &Deal| t.number);
                let mut sum = aggregate.lift(all[0].data.number);
                all[1..].iter().for_each(|deal| aggregate.absorb(&mut sum, deal.data.number));
                let shown = Aggregate::<Deal>::value(&aggregate, 0, &sum).unwrap();
                let right = ranked(&numbers, *quantile);
                let error = (i128::from(shown) - i128::from(right)).abs();
                assert!(error == 0 || error * 256 < i128::from(right).abs(), "{shown} for {right}");
                shown
            },
        );
    }
}

/// Returns the value of an aggregate of numbers.
fn shown<A: Aggregate<Deal, Part = N>, N>(aggregate: &A, numbers: impl IntoIterator<Item = N>) -> A::Value {
    let (mut numbers, mut count) = (numbers.into_iter(), 1);
    let mut sum = aggregate.lift(numbers.next().unwrap());
    numbers.for_each(|number| {
        aggregate.absorb(&mut sum, number);
        count += 1;
    });
    aggregate.value(count, &sum).unwrap()
}

#[test]
fn means_are_the_nearest_numbers_to_exact_fractions() {
    let each = Each::<Deal>::new();
    for seed in 1..=2_000 {
        let mut random = Rng::with_seed(seed);
        let count = random.usize(1..12);
        // Integers of all sizes, up to those whose sum wraps 128 bits; and decimals of all scales.
        let spread = random.u32(0..127);
        let wide: Vec<i128> = (0..count).map(|_| random.i128(..) >> spread).collect();
        let sum = wide.iter().copied().map(BigInt::from).sum::<BigInt>();
        let mean = shown(&each.mean(|_: &Deal| 0i128), wide.iter().copied());
        assert_nearest(mean.get(), &fraction(sum, count), &(seed, &wide));
        let narrow: Vec<i64> = wide.iter().map(|number| *number as i64).collect();
        let sum = narrow.iter().copied().map(BigInt::from).sum::<BigInt>();
        let mean = shown(&each.mean(|_: &Deal| 0i64), narrow.iter().copied());
        assert_nearest(mean.get(), &fraction(sum, count), &(seed, &narrow));
        let scale = random.u32(0..=28);
        let scale = if random.bool() { 2 } else { scale };
        let digits: Vec<i128> = wide.iter().map(|number| number >> 33 >> random.u32(0..94)).collect();
        let mean = shown(
            &each.mean(|_: &Deal| Decimal::ZERO),
            digits.iter().map(|digits| Decimal::from_digits(digits % (1 << 95), scale).unwrap()),
        );
        let sum = digits.iter().map(|digits| BigInt::from(digits % (1 << 95))).sum::<BigInt>();
        let exact = fraction(sum, BigInt::from(10).pow(scale) * count);
        assert_nearest(mean.get(), &exact, &(seed, digits, scale));
    }
}

/// Returns n·Σx² − (Σx)², of n numbers.
fn squares(numbers: &[i64]) -> BigInt {
    let sum = numbers.iter().copied().map(BigInt::from).sum::<BigInt>();
    let squares = numbers.iter().copied().map(|number| BigInt::from(number).pow(2)).sum::<BigInt>();
    squares * numbers.len() - &sum * &sum
}

#[test]
fn variances_are_the_nearest_numbers_to_exact_fractions_and_deviations_are_within_one_unit() {
    let each = Each::<Deal>::new();
    for seed in 1..=2_000 {
        let mut random = Rng::with_seed(seed);
        let (count, spread, far) = (random.usize(2..12), random.u32(1..63), random.i64(..) >> 1);
        let numbers: Vec<i64> = (0..count).map(|_| (random.i64(..) >> spread).saturating_add(far)).collect();
        let variance = shown(&each.variance(|_: &Deal| 0i64), numbers.iter().copied());
        let exact = fraction(squares(&numbers), count * count);
        assert_nearest(variance.get(), &exact, &(seed, &numbers));
        let sample = shown(&each.sample_variance(|_: &Deal| 0i64), numbers.iter().copied());
        assert_nearest(sample.unwrap().get(), &fraction(squares(&numbers), count * (count - 1)), &(seed, &numbers));
        // The exact root lies between the neighbours of the deviation.
        let deviation = shown(&each.std_dev(|_: &Deal| 0i64), numbers.iter().copied()).get();
        let square = |of: f64| BigRational::from_float(of).unwrap().pow(2);
        assert!(
            exact == square(deviation) || square(deviation.next_down()) < exact && exact < square(deviation.next_up()),
            "{deviation} of {numbers:?}, seed {seed}",
        );
    }
}

#[test]
fn spreads_of_numbers() {
    let of = |deals: &[Event<Deal>], of: fn(&Deal) -> i64| -> (BigInt, usize) {
        (squares(&deals.iter().map(|deal| of(&deal.data)).collect::<Vec<_>>()), deals.len())
    };
    let nearest = |(squares, _): &(BigInt, usize), by: usize| {
        let exact = fraction(squares.clone(), by);
        // The rounding of the fraction library may be off; one of its neighbours is the nearest.
        let near = exact.to_f64().unwrap();
        let off = |it: &f64| (BigRational::from_float(*it).unwrap() - &exact).abs();
        let all = [near, near.next_up(), near.next_down()];
        all.into_iter().min_by_key(off).unwrap()
    };
    let middling: fn(&Deal) -> i64 = |t| t.number >> 24;
    for of_deal in [middling, |t| t.number] {
        laws(
            move |each| (each.variance(of_deal), each.std_dev(of_deal)),
            |all| {
                let squares = of(all, of_deal);
                let variance = nearest(&squares, squares.1 * squares.1);
                (Real::new(variance), Real::new(variance.sqrt()))
            },
        );
    }
    laws(
        |each| (each.sample_variance(|t| t.small), each.sample_std_dev(|t| t.small)),
        |all| {
            let squares = of(all, |t| t.small.into());
            let variance = (squares.1 > 1).then(|| nearest(&squares, squares.1 * (squares.1 - 1)));
            (variance.map(Real::new), variance.map(|variance| Real::new(variance.sqrt())))
        },
    );
}

#[test]
fn of_some_of_the_records() {
    let odd = |all: &[Event<Deal>]| all.iter().filter(|deal| deal.data.small % 2 != 0).cloned().collect::<Vec<_>>();
    let some = |found: &[Event<Deal>], value: i128| (!found.is_empty()).then_some((found.len() as i64, value));
    let sum = |found: &[Event<Deal>]| found.iter().map(|deal| i128::from(deal.data.small)).sum::<i128>();
    laws(
        |each| (each.count(), each.filter(|t| t.small % 2 != 0, |each| (each.count(), each.sum(|t| t.small)))),
        |all| (all.len() as i64, some(&odd(all), sum(&odd(all)))),
    );
    laws(|each| each.count_if(|t| t.small % 2 != 0), |all| odd(all).len() as i64);
    // Positions are those of the records, of which values and ties are some.
    laws(
        |each| each.filter_map(|t| (t.small % 2 != 0).then(|| t.clone()), |each| each.collect(whole)),
        |all| Some(odd(all).iter().map(|deal| deal.data.clone()).collect()).filter(|all: &Vec<_>| !all.is_empty()),
    );
    // One within another, and some that no record passes.
    laws(
        |each| each.filter(|t| t.small % 2 != 0, |each| each.filter(|t| t.small > 0, |each| each.max(|t| t.number))),
        |all| {
            let odd = odd(all);
            let greatest = odd.iter().filter(|deal| deal.data.small > 0).map(|deal| deal.data.number).max();
            (!odd.is_empty()).then_some(greatest)
        },
    );
    laws(|each| each.if_any(each.max(|t| t.number)), |all| all.iter().map(|deal| deal.data.number).max());
    let any = Each::<Deal>::new().if_any(Each::<Deal>::new().max(|t: &Deal| t.number));
    assert_eq!(any.value(0, &any.empty().unwrap()), Ok(None));
    laws(|each| (each.filter(|_| false, |each| each.mean(|t| t.small)), each.count_if(|_| false)), |_| (None, 0));
    let each = Each::<Deal>::new();
    let some = each.filter(|_| true, |each| (each.count(), each.count_if(|_| true)));
    assert_eq!((some.filters(), (each.count(), each.sum(|t: &Deal| t.small)).filters()), (2, 0));
    assert!(each.filter(|_| true, |each| each.top(0, |t| t.small)).check().is_err());
}

#[test]
fn everything() {
    laws(|each| each.collect(whole), |all| all.iter().map(|deal| deal.data.clone()).collect());
    laws(|each| each.collect(|_| 7u8), |all| vec![7; all.len()]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    fn refused<A: Aggregate<Deal>>(aggregate: &A) -> String {
        aggregate.check().unwrap_err().to_string()
    }
    let each = Each::<Deal>::new();
    assert!(refused(&each.top(0, |t| t.small)).contains("none would be kept"));
    assert!(refused(&each.bottom(0, |t| t.small)).contains("none would be kept"));
    assert!(refused(&each.quantile(1.5, |t| t.small)).contains("1.5 is no quantile"));
    assert!(refused(&(each.count(), each.quantiles([0.5, -1.0], |t| t.small))).contains("-1 is no quantile"));
    assert!(refused(&((each.count(), (each.top(0, |t| t.small),)), each.count())).contains("none would be kept"));
}
