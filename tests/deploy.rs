//! The files for operators in `docs/deploy/` fit each other and the program: syntax, flags, ports, paths and names.
//!
//! It exists because nobody notices that such a file names a flag that is gone until it is needed.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/run.rs"]
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use run::run;
use yaml_rust2::{Yaml, YamlLoader};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const FOLDER: &str = "docs/deploy";
/// The image that is built from `Dockerfile`.
const OWN_IMAGE: &str = "tidegate";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(FOLDER).join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn yaml(path: &str) -> Yaml {
    let documents = YamlLoader::load_from_str(&read(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
    assert_eq!(documents.len(), 1, "{path}");
    documents.into_iter().next().unwrap()
}

fn strings(list: &Yaml) -> Vec<&str> {
    list.as_vec().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// Checks that a command line of the tool, without the tool's name, is one that it would take: its command and its flags
/// exist.
fn check_command_line(words: &[&str]) {
    check_reach(words);
    let (command, rest) = words.split_first().unwrap();
    let ended = run(TIDEGATE, [command, "--help"]);
    let help = ended.code(0).stdout().to_owned();
    let known: BTreeSet<&str> = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
    let flags: Vec<&&str> = rest.iter().filter(|word| word.starts_with('-')).collect();
    assert!(!flags.is_empty(), "{words:?}");
    for flag in flags {
        assert!(known.contains(*flag), "{command} has no {flag}: {words:?}");
    }
}

/// Asserts that a job that other machines reach asks for a token, or says that it need not.
fn check_reach(words: &[&str]) {
    let Some(address) = value(words, "--http") else { return };
    let is_open = words.contains(&"--http-open") || words.contains(&"--http-token-file");
    assert!(address.starts_with("127.") || is_open, "refused: {words:?}");
}

/// Returns the word behind a flag.
fn value<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1).copied())
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The services of `compose.yaml`: name and description.
fn services(compose: &Yaml) -> BTreeMap<String, Yaml> {
    let services = compose["services"].as_hash().unwrap().iter();
    services.map(|(name, service)| (name.as_str().unwrap().to_owned(), service.clone())).collect()
}

/// Returns the file on this machine that is mounted at a path of a service.
fn mounted(service: &Yaml, at: &str) -> PathBuf {
    let volumes = strings(&service["volumes"]);
    let volume = volumes.iter().find(|volume| volume.split(':').nth(1) == Some(at));
    let volume = volume.unwrap_or_else(|| panic!("nothing is mounted at {at}: {volumes:?}"));
    root().join(FOLDER).join(volume.split(':').next().unwrap())
}

#[test]
fn services_have_commands_files_and_ports_that_are_there() {
    let compose = yaml("compose.yaml");
    let services = services(&compose);
    let volumes: BTreeSet<&str> =
        compose["volumes"].as_hash().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
    let (mut commands, mut used) = (0, BTreeSet::new());
    for (name, service) in &services {
        let image = service["image"].as_str().unwrap_or_else(|| panic!("{name} has no image"));
        assert!(image == OWN_IMAGE || image.contains(':'), "{name}: the version of {image} is not fixed");
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port} is open to other machines");
        }
        for volume in strings(&service["volumes"]) {
            let from = volume.split(':').next().unwrap();
            if from.starts_with('.') {
                assert!(root().join(FOLDER).join(from).is_file(), "{name}: {from} is not there");
            } else {
                assert!(volumes.contains(from), "{name}: {from} is no volume");
                used.insert(from);
            }
        }
        for needed in service["depends_on"].as_hash().into_iter().flat_map(|needed| needed.keys()) {
            assert!(services.contains_key(needed.as_str().unwrap()), "{name} depends on {needed:?}");
        }
        if image == OWN_IMAGE {
            let build = &service["build"];
            let context = root().join(FOLDER).join(build["context"].as_str().unwrap());
            assert_eq!(context.canonicalize().unwrap(), root().canonicalize().unwrap());
            assert!(context.join(build["dockerfile"].as_str().unwrap()).is_file());
            let words: Vec<&str> = service["command"].as_str().unwrap().split_whitespace().collect();
            check_command_line(&words);
            let brokers = value(&words, "--brokers").unwrap();
            let listeners = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].as_str().unwrap();
            assert!(listeners.contains(&format!("://{brokers}")), "{brokers} is none of {listeners}");
            commands += 1;
        }
    }
    assert_eq!((commands, used), (2, volumes));
    let words = |name: &str| services[name]["command"].as_str().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(value(&words("query"), "--topic"), value(&words("transactions"), "--topic"));
}

#[test]
fn prometheus_and_grafana_find_what_they_show() {
    let services = services(&yaml("compose.yaml"));
    let command: Vec<&str> = services["query"]["command"].as_str().unwrap().split_whitespace().collect();
    let http = port(value(&command, "--http").unwrap());
    assert_eq!(strings(&services["query"]["ports"]), [format!("127.0.0.1:{http}:{http}")]);
    // Requests are answered that call the process by the name of its service.
    assert_eq!(value(&command, "--http-host"), Some("query"));
    let prometheus = yaml("prometheus.yml");
    let scrape = &prometheus["scrape_configs"][0];
    assert_eq!(strings(&scrape["static_configs"][0]["targets"]), [format!("query:{http}")]);
    assert_eq!((scrape["honor_labels"].as_bool(), scrape["metrics_path"].as_str()), (Some(true), Some("/metrics")));
    let path = "/etc/prometheus/prometheus.yml";
    assert!(mounted(&services["prometheus"], path).ends_with("prometheus.yml"));
    for rules in strings(&prometheus["rule_files"]) {
        let rules = fs::read_to_string(mounted(&services["prometheus"], rules)).unwrap();
        let rules = YamlLoader::load_from_str(&rules).unwrap();
        assert!(rules[0]["groups"][0]["rules"].as_vec().unwrap().len() >= 9, "{rules:?}");
    }
    let (source, dashboards) = (yaml("grafana/datasource.yml"), yaml("grafana/dashboards.yml"));
    let grafana = &services["grafana"];
    let provisioned = |kind: &str| mounted(grafana, &format!("/etc/grafana/provisioning/{kind}/tidegate.yml"));
    assert!(provisioned("datasources").ends_with("grafana/datasource.yml"));
    assert!(provisioned("dashboards").ends_with("grafana/dashboards.yml"));
    let url = source["datasources"][0]["url"].as_str().unwrap();
    let listens = port(strings(&services["prometheus"]["ports"])[0]);
    assert_eq!(url, format!("http://prometheus:{listens}"));
    let folder = dashboards["providers"][0]["options"]["path"].as_str().unwrap();
    let dashboard = fs::read_to_string(mounted(grafana, &format!("{folder}/tidegate.json"))).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    // The dashboard asks for a data source of the type that is there.
    assert_eq!(dashboard["templating"]["list"][0]["query"], source["datasources"][0]["type"].as_str().unwrap());
}

/// The instructions of a Dockerfile: name and arguments; lines that go on are one.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
}

#[test]
fn the_image_is_built_of_what_is_there() {
    let known =
        ["FROM", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"];
    let instructions = instructions(&read("Dockerfile"));
    for (name, rest) in &instructions {
        assert!(known.contains(&name.as_str()), "{name} {rest}");
    }
    let of =
        |name: &'static str| instructions.iter().filter(move |(known, _)| known == name).map(|(_, rest)| rest.as_str());
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(of("FROM").next().unwrap().starts_with(&format!("rust:{version}")), "{:?}", of("FROM").next());
    let build: Vec<&str> = of("RUN").find(|run| run.starts_with("cargo ")).unwrap().split_whitespace().collect();
    let program = value(&build, "--bin").unwrap();
    assert!(manifest.contains(&format!("[[bin]]\nname = \"{program}\"")), "there is no program {program}");
    for feature in value(&build, "--features").unwrap().split(',') {
        assert!(manifest.contains(&format!("\n{feature} = [")), "there is no feature {feature}");
    }
    let copied = of("COPY").find(|copy| copy.starts_with("--from=build")).unwrap();
    let source = of("WORKDIR").next().unwrap();
    assert!(copied.contains(&format!("{source}/target/release/{program} ")), "{copied}");
    assert_eq!(of("ENTRYPOINT").collect::<Vec<_>>(), [format!("[\"{program}\"]")]);
    let check = of("HEALTHCHECK").next().unwrap().split_once("CMD ").unwrap().1;
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    let check: Vec<&str> = check.iter().map(String::as_str).collect();
    assert_eq!(check[0], program);
    check_command_line(&check[1..]);
    assert_eq!(port(check[2]).to_string(), of("EXPOSE").next().unwrap());
    // The state of the query of compose.yaml is in the volume.
    let services = services(&yaml("compose.yaml"));
    let home = of("VOLUME").next().unwrap();
    assert!(of("WORKDIR").any(|folder| folder == home));
    assert!(strings(&services["query"]["volumes"]).iter().any(|volume| volume.ends_with(home)));
}

#[test]
fn the_service_of_systemd_runs_a_query_that_is_there() {
    let text = read("tidegate.service");
    let (mut section, mut settings) = ("", BTreeMap::<(&str, &str), &str>::new());
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']').unwrap();
            assert!(["Unit", "Service", "Install"].contains(&section), "{line}");
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        assert!(!section.is_empty() && !value.is_empty() && name.chars().all(char::is_alphanumeric), "{line}");
        assert_eq!(settings.insert((section, name), value), None, "twice: {line}");
    }
    let of = |name: &str| settings[&("Service", name)];
    let words: Vec<&str> = of("ExecStart").split_whitespace().collect();
    assert!(words[0].starts_with('/') && words[0].ends_with("/tidegate"), "{words:?}");
    check_command_line(&words[1..]);
    let state = value(&words, "--state").unwrap();
    assert!(state.starts_with(&format!("/var/lib/{}/", of("StateDirectory"))), "{state}");
    assert!(state.starts_with(of("WorkingDirectory")), "{state}");
    assert_eq!((of("SuccessExitStatus"), of("KillSignal")), ("130 143", "SIGTERM"));
    assert!(text.contains(&format!("http://{}.", value(&words, "--http").unwrap())));
    assert_eq!(settings[&("Install", "WantedBy")], "multi-user.target");
}
