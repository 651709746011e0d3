//! What is published is what users need: sources, queries, documentation and licences; no tests, no fixtures, no CI.
//!
//! It exists because what `Cargo.toml` includes is noticed only when somebody has downloaded it.

use std::process::Command;

/// Lists the files of the package.
fn packaged() -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["package", "--list", "--allow-dirty", "--offline", "--package", "tidegate"];
    let asked = Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let asked = asked.expect("cargo runs");
    assert!(asked.status.success(), "cargo package: {}", String::from_utf8_lossy(&asked.stderr));
    String::from_utf8_lossy(&asked.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_package_holds_what_users_need_and_nothing_else() {
    let files = packaged();
    let needed = [
        "Cargo.toml",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "docs/guide.md",
        "src/lib.rs",
        "src/job/page/index.html",
        "src/job/page/main.js",
        "queries/account_totals.rs",
    ];
    for name in needed {
        assert!(files.iter().any(|file| file == name), "{name} is missing: {files:?}");
    }
    for file in &files {
        let unwanted = ["tests/", "benches/", ".ci/", "target/"].iter().any(|room| file.starts_with(room));
        assert!(!unwanted, "{file} is in the package");
    }
}
