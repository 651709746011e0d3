//! Completion scripts and manual pages name what `--help` names: every command, every flag.
//!
//! Both are made from the command line by a library; what is tested is that they are made of the whole of it, and that
//! what cannot be written is an error in one line.

#[path = "common/run.rs"]
mod run;

use std::fs::{self, File};

use run::{run, start_with};

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// Returns the `--help` of a command of the tool, without examples.
fn help(command: &[String]) -> String {
    let ended = run(TIDEGATE, command.iter().map(String::as_str).chain(["--help"]));
    let text = ended.code(0).stdout().to_owned();
    let end = ["\nExamples:", "\nColumns:"].iter().filter_map(|begin| text.find(begin)).min();
    text[..end.unwrap_or(text.len())].to_owned()
}

/// Lists the commands directly below a command.
fn below(command: &[String]) -> Vec<Vec<String>> {
    let text = help(command);
    let Some((_, listed)) = text.split_once("Commands:\n") else { return Vec::new() };
    let names = listed.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(|name| command.iter().cloned().chain([name.to_owned()]).collect()).collect()
}

/// Lists every command of the tool, itself included, as the words behind its name.
fn commands() -> Vec<Vec<String>> {
    let (mut all, mut next) = (vec![Vec::new()], 0);
    while let Some(command) = all.get(next).cloned() {
        all.extend(below(&command));
        next += 1;
    }
    assert!(all.len() > 12, "only {} commands were found", all.len());
    all
}

/// Lists the flags of a command, by their long names.
fn flags(command: &[String]) -> Vec<String> {
    let is_flag =
        |line: &&str| matches!(line.len() - line.trim_start().len(), 2 | 6) && line.trim_start().starts_with('-');
    let long =
        |line: &str| line.split([' ', ',', '<', '=', '.']).find(|word| word.starts_with("--")).map(str::to_owned);
    help(command).lines().filter(is_flag).filter_map(long).collect()
}

#[test]
fn the_script_of_each_shell_names_every_command() {
    let commands = commands();
    for shell in SHELLS {
        let ended = run(TIDEGATE, ["completions", shell]);
        let script = ended.code(0).stdout();
        for command in commands.iter().filter_map(|command| command.last()) {
            assert!(script.contains(command.as_str()), "{shell}: `{command}` is missing");
        }
        for flag in ["until-end", "generate", "window"] {
            assert!(script.contains(flag), "{shell}: `{flag}` is missing");
        }
    }
}

#[test]
fn each_command_has_a_manual_page_that_names_its_flags() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man1");
    let commands = commands();
    let said = run(TIDEGATE, ["man", pages.to_str().unwrap()]);
    assert_eq!(said.code(0).stdout(), format!("{}: {} manual pages\n", pages.display(), commands.len()));
    assert_eq!(fs::read_dir(&pages).unwrap().count(), commands.len());
    for command in &commands {
        let name = ["tidegate".to_owned()].iter().chain(command).cloned().collect::<Vec<_>>().join("-");
        let page = fs::read_to_string(pages.join(format!("{name}.1"))).unwrap().replace("\\-", "-");
        let flags = flags(command);
        assert!(flags.contains(&"--help".to_owned()), "{command:?}: {flags:?}");
        for flag in flags {
            assert!(page.contains(&flag), "{name}: `{flag}` is missing");
        }
        assert!(!page.contains("--kill-at"), "{name} names a flag that is for tests");
    }
    let consume = vec![String::from("consume")];
    assert!(flags(&consume).len() > 20, "{:?}", flags(&consume));
}

#[test]
fn what_cannot_be_written_is_an_error_in_a_line() {
    let full = |command: &mut std::process::Command| {
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
    };
    let ended = start_with(TIDEGATE, ["completions", "bash"], full).end();
    assert!(ended.error(1).starts_with("cannot write the completion script"), "{}", ended.stderr);
    let ended = run(TIDEGATE, ["man", "/dev/null/pages"]);
    assert!(ended.error(1).contains("/dev/null/pages"), "{}", ended.stderr);
    run(TIDEGATE, ["completions", "no-such-shell"]).code(2);
}
