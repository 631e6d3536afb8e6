//! Code that all commands share while they run: wait, read events, replay capture files, and end.

pub mod call;
pub mod counts;
pub mod drops;
pub mod events;
pub mod export;
pub mod histograms;
pub mod holders;
pub mod iterator;
pub mod line_rate;
pub mod monotonic;
pub mod packet;
pub mod processes;
pub mod replay;
pub mod screen;
pub mod session;
