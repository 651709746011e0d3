//! `tidegate completions` and `tidegate man`: completion scripts of shells and manual pages, made of the command line itself.
//!
//! Both take the [`Command`] that the tool parses with, so a flag is in them as soon as it is in `--help`.
//!
//! Invariant: a manual page names no command and no flag that `--help` hides.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::print_line;
use crate::error::{Error, Result};

const COMPLETIONS: &str = "Examples:
  tidegate completions bash > ~/.local/share/bash-completion/completions/tidegate
  tidegate completions zsh > ~/.zfunc/_tidegate
  tidegate completions fish > ~/.config/fish/completions/tidegate.fish";

const MAN: &str = "Examples:
  tidegate man ~/.local/share/man/man1
  tidegate man pages && man -l pages/tidegate-snapshot.1";

/// Flags of `tidegate completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = COMPLETIONS)]
pub struct CompletionsArgs {
    /// The shell that reads the script
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Flags of `tidegate man`.
#[derive(Clone, Debug, Args)]
#[command(after_help = MAN)]
pub struct ManArgs {
    /// The directory that gets a page for each command; it is made if it is missing
    pub directory: PathBuf,
}

/// Writes the completion script of a command line to standard output; returns the exit code.
///
/// # Errors
/// Fails if standard output cannot be written to.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<u8> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let mut out = io::stdout().lock();
    let written = out.write_all(&script).and_then(|()| out.flush());
    written.map_err(|why| Error::new("cannot write the completion script to standard output").because(why))?;
    Ok(0)
}

/// Writes the manual pages of a command line, one for each command; returns the exit code.
///
/// # Errors
/// Fails if the directory or a page cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<u8> {
    let directory = &args.directory;
    let cannot = |why| Error::new("cannot make the directory of the manual pages").at(directory.display()).because(why);
    fs::create_dir_all(directory).map_err(cannot)?;
    let source = format!("{} {}", command.get_name(), command.get_version().unwrap_or_default());
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let count = pages(&command, &source, directory)?;
    print_line(format_args!("{}: {count} manual pages", directory.display()));
    Ok(0)
}

/// Writes the pages of a command and of those below it; returns how many.
fn pages(command: &Command, source: &str, directory: &Path) -> Result<usize> {
    let page = Man::new(command.clone()).source(source).manual("Tidegate");
    let path = directory.join(page.get_filename());
    let mut text = Vec::new();
    let written = page.render(&mut text).and_then(|()| fs::write(&path, &text));
    written.map_err(|why| Error::new("cannot write a manual page").at(path.display()).because(why))?;
    let below = command.get_subcommands().filter(|command| !command.is_hide_set());
    below.map(|command| pages(command, source, directory)).sum::<Result<usize>>().map(|below| below + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    #[test]
    fn hidden_commands_and_flags_are_in_no_page() {
        let shown = Arg::new("shown").long("shown");
        let hidden = Arg::new("hidden").long("hidden").hide(true);
        let command = Command::new("tool")
            .version("1.2.3")
            .subcommand(Command::new("open").arg(shown).arg(hidden))
            .subcommand(Command::new("secret").hide(true));
        let directory = tempfile::tempdir().unwrap();
        let args = ManArgs { directory: directory.path().join("man1") };
        assert_eq!(man(&args, command), Ok(0));
        let listed = fs::read_dir(&args.directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = listed.collect();
        names.sort();
        assert_eq!(names, ["tool-open.1", "tool.1"]);
        let page = fs::read_to_string(args.directory.join("tool-open.1")).unwrap();
        assert!(page.contains("shown") && !page.contains("hidden") && page.contains("tool 1.2.3"), "{page}");
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = man(&ManArgs { directory: file.path().join("man1") }, Command::new("tool")).unwrap_err();
        assert!(error.to_string().contains(&*file.path().to_string_lossy()), "{error}");
    }
}
