//! Every crate that Tidegate is built with may be used by whoever takes Tidegate under MIT or Apache 2.0.
//!
//! It exists because a licence changes, or comes with a new dependency, without a word from the compiler. It asks cargo and
//! nothing else; `deny.toml` has the same set for `cargo deny`, and the two are compared.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Licences that ask for nothing but their text.
const ALLOWED: [&str; 7] = ["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unicode-3.0", "Zlib"];

/// `true` if an SPDX expression can be met with the allowed licences alone. `/` is an older form of `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any(&mut rest) && rest.is_empty()
}

/// Reads alternatives, of which one has to be allowed.
fn any(rest: &mut &[&str]) -> bool {
    let mut allowed = all(rest);
    while let [first, after @ ..] = *rest
        && *first == "OR"
    {
        *rest = after;
        allowed |= all(rest);
    }
    allowed
}

/// Reads licences that apply together.
fn all(rest: &mut &[&str]) -> bool {
    let mut allowed = one(rest);
    while let [first, after @ ..] = *rest
        && *first == "AND"
    {
        *rest = after;
        allowed &= one(rest);
    }
    allowed
}

/// Reads a licence, or an expression in parentheses. An exception only adds rights, so it is passed over.
fn one(rest: &mut &[&str]) -> bool {
    let [first, after @ ..] = *rest else { return false };
    *rest = after;
    if *first == "(" {
        let allowed = any(rest);
        let closed = rest.first() == Some(&")");
        *rest = rest.get(1..).unwrap_or_default();
        return allowed && closed;
    }
    if let ["WITH", _exception, after @ ..] = *rest {
        *rest = after;
    }
    ALLOWED.contains(first)
}

/// Asks cargo, without the network, for all packages of the lock file: for every system, and with these features.
fn packages(features: &[&str]) -> Result<Vec<Value>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--offline"].iter().chain(features);
    let asked = Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    if !asked.status.success() {
        return Err(String::from_utf8_lossy(&asked.stderr).into_owned());
    }
    let mut metadata: Value = serde_json::from_slice(&asked.stdout).unwrap();
    Ok(metadata["packages"].as_array_mut().map(std::mem::take).unwrap())
}

/// Packages of every feature, or, where those of the rarer ones were not fetched yet, of the default ones.
fn all_packages() -> Vec<Value> {
    packages(&["--all-features"]).unwrap_or_else(|why| {
        assert!(std::env::var_os("CI").is_none(), "not all packages are here, `cargo fetch` gets them: {why}");
        eprintln!("SKIPPED: licences of what only optional features need; `cargo fetch` gets them: {why}");
        packages(&[]).unwrap()
    })
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let packages = all_packages();
    assert!(packages.len() > 50, "only {} packages were found", packages.len());
    let mut refused = Vec::new();
    // A package without a source is one of this workspace.
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let license = package["license"].as_str();
        if !license.is_some_and(is_allowed) {
            let text = license.unwrap_or("no licence that cargo knows");
            refused.push(format!("{} {}: {text}", package["name"], package["version"]));
        }
    }
    assert!(refused.is_empty(), "not allowed:\n{}", refused.join("\n"));
}

#[test]
fn expressions_are_read_as_spdx_says() {
    for allowed in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND Unicode-3.0"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    assert!(is_allowed("Apache-2.0 WITH LLVM-exception"));
    for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR GPL-3.0) AND MPL-2.0", "(MIT", "MIT GPL-3.0"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}

#[test]
fn cargo_deny_is_told_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let text = fs::read_to_string(path).unwrap();
    let (_, licenses) = text.split_once("[licenses]").unwrap();
    let (_, listed) = licenses.split_once("allow = [").unwrap();
    let (listed, _) = listed.split_once(']').unwrap();
    let mut told: Vec<&str> = listed.split(',').map(|name| name.trim().trim_matches('"')).collect();
    told.retain(|name| !name.is_empty());
    assert_eq!(told, ALLOWED);
}
