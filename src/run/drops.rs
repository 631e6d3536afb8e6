//! What the running kernel says of a drop at the tracepoint kfree_skb, and the reasons that
//! `--reason` accepts.

use anyhow::Result;

use crate::domain::reasons::Reasons;
use crate::failure::Failure;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::kernel_types::KernelTypes;
use crate::skel::DropSettings;

/// What the kfree_skb tracepoint offers.
pub struct DropTracepoint {
    /// It has the reason of a drop.
    pub has_reason: bool,
    /// It also has the socket that was to receive the segment.
    pub has_socket: bool,
    /// The names of reasons.
    pub reasons: Reasons,
}

impl DropTracepoint {
    /// Asks the running kernel.
    ///
    /// # Errors
    /// Its type information can't be read.
    pub fn find(types: &KernelTypes) -> Result<Self> {
        let arguments = types.tracepoint_arguments("kfree_skb")?.unwrap_or(0);
        Ok(Self {
            has_reason: arguments > 2,
            has_socket: arguments > 3,
            reasons: Reasons::new(&types.enumerators("skb_drop_reason")?, "SKB_DROP_REASON_"),
        })
    }

    /// Sets the numbers that this kernel has for the reasons that programs compare with. If the
    /// kernel gives no reasons, programs recognize a copy for packet sockets by the function that
    /// frees it.
    pub fn configure(&self, settings: DropSettings<'_>, symbols: &mut KernelSymbols) {
        *settings.consumed = self.reasons.consumed;
        for (setting, name) in [
            (settings.not_specified, "not_specified"),
            (settings.queue_purge, "queue_purge"),
            (settings.packet_sock_error, "packet_sock_error"),
            (settings.no_socket, "no_socket"),
            (settings.listen_overflow, "tcp_listen_overflow"),
            (settings.old_sequence, "tcp_old_sequence"),
        ] {
            *setting = self.reasons.number(name).unwrap_or(0);
        }
        if !self.has_reason
            && let Some((start, end)) = symbols.range("packet_rcv")
        {
            *settings.packet_rcv_start = start;
            *settings.packet_rcv_end = end;
        }
    }
}

/// Checks the argument of `--reason`. `examples` are for the hint.
///
/// # Errors
/// A reason is not among those that are known.
pub fn check_reasons<'a>(
    asked: &[String],
    known: impl Iterator<Item = &'a str> + Clone,
    examples: &str,
) -> Result<(), Failure> {
    let is_known = |name: &&String| known.clone().any(|it| it == name.as_str());
    match asked.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!(
            "'{name}' is not a reason that this kernel gives"
        ))
        .hint(format!(
            "reasons are spelled as they are shown, such as {examples}"
        ))),
    }
}
