//! Traces and metrics of a job by OpenTelemetry.
//!
//! With `OTEL_EXPORTER_OTLP_ENDPOINT` (such as `http://localhost:4318`) they go to a collector by OTLP over HTTP, else to
//! standard output. Run it from the project's root: `cargo run --manifest-path docs/opentelemetry/Cargo.toml`.
//!
//! Spans are those that Tidegate makes with the crate `tracing`, under [`SPAN_TARGET`]; figures are read from
//! [`Job::metrics`] when they are exported. So a job does nothing for either while nobody exports them.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tidegate::metrics::{Metrics, SPAN_TARGET};
use tidegate::source::generator::{Generator, GeneratorSource};
use tidegate::{Closed, EventTime, Job, State, Window, ndjson};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

const NAME: &str = "spend-by-minute";

/// Creates the providers, with exporters that send in the background: no worker waits for them.
fn providers() -> Result<(SdkTracerProvider, SdkMeterProvider), Box<dyn Error>> {
    let resource = Resource::builder().with_service_name(NAME).build();
    let spans = SdkTracerProvider::builder().with_resource(resource.clone());
    let figures = SdkMeterProvider::builder().with_resource(resource);
    Ok(if env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
        let to_spans = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
        let to_figures = opentelemetry_otlp::MetricExporter::builder().with_http().build()?;
        (spans.with_batch_exporter(to_spans).build(), figures.with_periodic_exporter(to_figures).build())
    } else {
        let (to_spans, to_figures) =
            (opentelemetry_stdout::SpanExporter::default(), opentelemetry_stdout::MetricExporter::default());
        (spans.with_batch_exporter(to_spans).build(), figures.with_periodic_exporter(to_figures).build())
    })
}

/// A counter that is read when it is exported: each value has the name of its source, step or sink.
fn count(
    meter: &Meter,
    metrics: &Arc<Metrics>,
    (name, label): (&'static str, &'static str),
    read: impl Fn(&Metrics) -> Vec<(String, u64)> + Send + Sync + 'static,
) {
    let metrics = Arc::clone(metrics);
    let counter = meter.u64_observable_counter(name).with_callback(move |observer| {
        for (of, value) in read(&metrics) {
            observer.observe(value, &[KeyValue::new(label, of)]);
        }
    });
    let _registered = counter.build();
}

/// Observes the figures of a job.
fn observe(meter: &Meter, metrics: &Arc<Metrics>) {
    count(meter, metrics, ("tidegate.source.records", "source"), |metrics| {
        metrics.summary().sources.into_iter().map(|source| (source.name, source.read)).collect()
    });
    count(meter, metrics, ("tidegate.step.late", "step"), |metrics| {
        metrics.summary().steps.into_iter().map(|step| (step.name, step.late)).collect()
    });
    count(meter, metrics, ("tidegate.sink.rows", "sink"), |metrics| {
        metrics.summary().sinks.into_iter().map(|sink| (sink.name, sink.rows)).collect()
    });
    let own = Arc::clone(metrics);
    let watermark =
        meter.f64_observable_gauge("tidegate.source.watermark").with_unit("s").with_callback(move |observer| {
            // Until there is a watermark, and of tables, it is the least time of all.
            let known = own.sources().into_iter().filter(|(_, source)| source.watermark.get() != EventTime::MIN);
            for (name, source) in known {
                observer.observe(source.watermark.get().millis() as f64 / 1e3, &[KeyValue::new("source", name)]);
            }
        });
    let _registered = watermark.build();
}

fn main() -> Result<(), Box<dyn Error>> {
    let (spans, figures) = providers()?;
    // Without the filter the spans of the exporter's own requests would be exported, too.
    let wanted = Targets::new().with_target(SPAN_TARGET, LevelFilter::DEBUG);
    let layer = tracing_opentelemetry::layer().with_tracer(spans.tracer("tidegate")).with_filter(wanted);
    tracing_subscriber::registry().with(layer).init();

    let folder = env::temp_dir().join(format!("tidegate-opentelemetry-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let job = Job::new(NAME).state(State::at(folder.join("state"))).workers(2).until_end();
    observe(&figures.meter("tidegate"), &job.metrics());
    let transactions = GeneratorSource::new(Generator::new(1), 200_000);
    let out = ndjson::Sink::new(folder.join("spend.ndjson"));
    let report = job.run(move |flow| {
        flow.read("transactions", &transactions)
            .key_by(|t| t.account.clone())
            .window(Window::tumbling(Duration::from_secs(60)))
            .aggregate("spend", |each| each.sum(|t| t.amount_cents))
            .on_close()
            .map(|Closed { window, key: account, value: cents }| (window.end.millis(), account, cents))
            .write("spend", &out);
    });
    // What is not exported yet: the last spans, and the figures at the end.
    figures.shutdown()?;
    spans.shutdown()?;
    std::fs::remove_dir_all(&folder)?;
    eprintln!("{}", report?.summary);
    Ok(())
}
