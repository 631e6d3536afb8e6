//! What reaches stdout and stderr, when, and that it adds up.

mod ends;
mod events;
mod lines;
mod readers;
mod terminal;
