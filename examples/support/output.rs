//! `print!` and `println!` for output that may be cut off (`… | head -1`): the program then ends, as other tools do,
//! instead of panicking. Declared first and with `#[macro_use]`, they stand before those of the standard library.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stdout};
use std::process::exit;

/// Writes to standard output, or ends the program: without a word if nobody reads any more.
pub(crate) fn write(text: Arguments<'_>) {
    if let Err(error) = stdout().write_fmt(text) {
        if error.kind() == ErrorKind::BrokenPipe {
            exit(0);
        }
        eprintln!("error: standard output: {error}");
        exit(1);
    }
}

macro_rules! print {
    ($($text:tt)*) => { $crate::output::write(format_args!($($text)*)) };
}

#[allow(unused_macros, reason = "an example may print nothing but whole texts")]
macro_rules! println {
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}
