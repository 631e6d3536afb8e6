//! Output to stdout and stderr: it arrives in time, and its figures add up.

mod ends;
mod events;
mod lines;
mod readers;
mod terminal;
