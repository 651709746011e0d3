//! Quick measurement.
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tidegate::{Job, Window, source::memory::Records, stream::Observer};
fn partition(p: usize, n: usize) -> Vec<(u32, i64, i64)> {
    let mut s = 88172645463325252u64 + p as u64 * 7919;
    let mut random = move || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s
    };
    (0..n / 2)
        .map(|i| {
            let r = random();
            let z = (r % 1000) as f64 / 1000.0;
            let account = (z * z * z * 100000f64) as u64 + (r >> 40) % 100;
            let t = ((i * 2) as u64 / 100 + 2000 - random() % 2000) as i64;
            (account as u32, t, (t * (account as i64 + 13)) % 10_000)
        })
        .collect()
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: usize = a[1].parse().unwrap();
    let w: usize = a[2].parse().unwrap();
    let parts = vec![partition(0, n), partition(1, n)];
    let t = Instant::now();
    let mut map: HashMap<(i64, u32), (i64, i64, i64, i64), foldhash::fast::FixedState> = HashMap::default();
    let mut closed = 0;
    let mut rows = 0u64;
    let (mut m0, mut m1) = (0, 0);
    for i in (0..n / 2).step_by(1000) {
        for (k, part) in parts.iter().enumerate() {
            for &(a, t, v) in &part[i..(i + 1000).min(n / 2)] {
                if k == 0 {
                    m0 = m0.max(t - 2000)
                } else {
                    m1 = m1.max(t - 2000)
                }
                map.entry((t / 10_000, a))
                    .and_modify(|x| {
                        x.0 += 1;
                        x.1 += v;
                        x.2 = x.2.min(v);
                        x.3 = x.3.max(v)
                    })
                    .or_insert((1, v, v, v));
            }
        }
        let now = m0.min(m1) / 10_000;
        if now > closed {
            map.retain(|k, _| {
                if k.0 < now {
                    rows += 1
                }
                k.0 >= now
            });
            closed = now;
        }
    }
    rows += map.len() as u64;
    let hand = n as f64 / t.elapsed().as_secs_f64() / 1e6;
    let source = Records::new(parts, |r: &(u32, i64, i64)| r.1).out_of_order(Duration::from_secs(2));
    for _ in 0..3 {
        let source = source.clone();
        let t = Instant::now();
        let report = Job::new("b")
            .workers(w)
            .run(move |flow| {
                flow.read("in", &source)
                    .key_by(|r| r.0)
                    .window(Window::tumbling(Duration::from_secs(10)))
                    .aggregate("t", |e| (e.count(), e.sum(|r| r.2), e.min(|r| r.2), e.max(|r| r.2)))
                    .on_close()
                    .filter(|_| false)
                    .write("out", &Observer::new(|_, _| Ok(())));
            })
            .unwrap();
        println!(
            "hand {hand:.1} ours {:.1} M/s rows {rows} {} epochs {}",
            n as f64 / t.elapsed().as_secs_f64() / 1e6,
            report.summary.steps[0].closed_rows,
            report.summary.epochs
        );
    }
}
