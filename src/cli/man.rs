//! `man`: manual pages, made from the help texts of the commands and from the reference file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::roff::{Roff, bold, roman};

use super::exit;
use super::output::explain;
use crate::config::REFERENCE;

/// Arguments of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// A folder for the pages; it is created if necessary
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Writes one page for each subcommand of `command`, and one for the configuration file.
pub fn run(args: &ManArgs, command: Command) -> ExitCode {
    match write(&args.folder, command) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            let folder = args.folder.display();
            explain(&format!("insights-gateway: cannot write manual pages to {folder}: {error}"));
            ExitCode::from(exit::INTERNAL)
        }
    }
}

fn write(folder: &Path, command: Command) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)?;
    fs::write(folder.join("insights-gateway.toml.5"), configuration_page())
}

/// The reference file as a page of section 5.
fn configuration_page() -> String {
    const SOURCE: &str = concat!("insights-gateway ", env!("CARGO_PKG_VERSION"));
    let mut page = Roff::new();
    page.control("TH", ["insights-gateway.toml", "5", "", SOURCE, ""]);
    page.control("SH", ["NAME"]);
    page.text([roman("insights-gateway.toml - configuration of insights-gateway")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([
        roman("The file that "),
        bold("insights-gateway serve --config"),
        roman(" reads. Below is the reference: every key with its default. "),
        bold("insights-gateway check"),
        roman(" says what is wrong with a file, and what is in effect."),
    ]);
    page.control("SH", ["REFERENCE"]);
    page.control("nf", None::<&str>);
    for line in REFERENCE.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", None::<&str>);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("insights-gateway"), roman("(1), "), bold("insights-gateway-check"), roman("(1)")]);
    page.to_roff()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use tempfile::TempDir;

    use super::*;
    use crate::cli::Cli;

    /// Adds all commands below `command` to `found`, each with the name of its page.
    fn commands(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            commands(below, &format!("{name}-{}", below.get_name()), found);
        }
    }

    #[test]
    fn every_command_and_flag_is_in_a_page() {
        let folder = TempDir::new().unwrap();
        write(folder.path(), Cli::command()).unwrap();
        let mut expected = Vec::new();
        commands(&Cli::command(), "insights-gateway", &mut expected);
        assert!(expected.len() > 10, "only {} commands were found", expected.len());
        for (name, command) in expected {
            let page = fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
            for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
                let flag = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&flag), "{name}.1 lacks {flag}");
            }
        }
    }

    #[test]
    fn the_configuration_page_has_every_key_of_the_reference() {
        let page = configuration_page();
        for line in REFERENCE.lines().filter(|line| line.contains(" = ")) {
            let key = line.split(" = ").next().unwrap_or_default();
            assert!(page.contains(&key.replace('-', "\\-")), "{key}");
        }
    }
}
