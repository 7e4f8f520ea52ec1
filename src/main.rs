//! Parses the command line and hands over. Nothing else.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    rdev::cli::main()
}
