//! The shipped programs, run frame by frame inside the kernel through `-r`, against the oracle.

mod all_syns;
mod bombs;
mod counts;
mod crafted;
mod expressions;
mod files;
mod filters;
mod frames;
mod streams;
mod times;
