//! Output to stdout and stderr: that it arrives in time, and that its figures add up.

mod ends;
mod events;
mod lines;
mod readers;
mod terminal;
