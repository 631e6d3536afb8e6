//! Output: the sink that writes to stdout, and the pure functions that render into it.

pub mod check;
pub mod clock;
pub mod connect;
pub mod count;
pub mod escape;
pub mod flow;
pub mod json;
pub mod line;
pub mod number;
pub mod packet;
pub mod sink;
pub mod summary;
