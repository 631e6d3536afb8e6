//! Watches the interfaces of a run, and whether its programs stay attached.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::Session;
use crate::attach::{Attached, HookState};
use crate::failure::Failure;
use crate::host::interfaces::{Interface, ResolveError, resolve};
use crate::host::link_watch::{LinkChange, LinkEvent, LinkWatch};
use crate::stop::ExitReason;

/// How often to check whether hooks are still attached: the kernel sends no event for that.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A hook that another process may detach.
pub(super) struct FollowedHook {
    /// The index of its interface.
    ifindex: u32,
    /// Hook and interface, for messages.
    name: String,
    state: HookState,
}

impl Session {
    /// Resolves the interfaces of the command line, and watches from now on whether they go away.
    ///
    /// # Errors
    /// An interface is unknown, or its frames are neither Ethernet nor plain IP. `hint` says what
    /// was probably meant by names that are not interfaces.
    pub fn interfaces(
        &mut self,
        names: &[String],
        hint: fn(&[String]) -> Option<String>,
    ) -> Result<Vec<Interface>, Failure> {
        let mut watch = LinkWatch::new()?;
        let interfaces = resolve(names).map_err(|error| match error {
            ResolveError::Usage {
                message,
                hint: other,
            } => {
                let mut failure = Failure::usage(message);
                failure.hint = hint(names).or(other);
                failure
            }
            ResolveError::Failed(error) => error.into(),
        })?;
        for interface in &interfaces {
            if let Some(frames) = interface.unreadable_frames() {
                return Err(
                    anyhow!("failed to use {}: its frames are {frames}", interface.name).into(),
                );
            }
        }
        watch.follow(&interfaces);
        self.watch = Some(watch);
        self.present.clone_from(&interfaces);
        Ok(interfaces)
    }

    /// Also watches these interfaces, which the user did not name. The run goes on when they are gone.
    ///
    /// # Errors
    /// Netlink can't be used.
    pub fn watch_unnamed(&mut self, interfaces: &[Interface]) -> Result<()> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(LinkWatch::new()?),
        };
        watch.follow(interfaces);
        Ok(())
    }

    /// Reports the notes of attached programs, and checks from now on whether they are still attached.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn follow(&mut self, attached: &mut Attached) -> Result<()> {
        for note in attached.take_notes() {
            self.notices.note(&note);
        }
        for hook in attached.hooks() {
            self.hooks.push(FollowedHook {
                ifindex: hook.ifindex,
                name: format!("{} on {}", hook.name, hook.iface),
                state: hook.state()?,
            });
        }
        Ok(())
    }

    pub(super) fn read_link_events(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        for event in watch.events()? {
            let name = &event.name;
            match &event.change {
                LinkChange::Gone => self.lose(&event),
                LinkChange::MovedAway if self.is_attached(event.index) => {
                    self.report_link_change(&format!(
                        "interface {name} was moved to another network namespace and is followed there"
                    ));
                    self.moved.push(event);
                }
                LinkChange::MovedAway => {
                    self.report_link_change(&format!(
                        "interface {name} was moved to another network namespace, and its TC filter was lost"
                    ));
                    self.lose(&event);
                }
                LinkChange::Renamed { to } => {
                    self.report_link_change(&format!("interface {name} was renamed to {to}"))
                }
                LinkChange::Up => self.report_link_change(&format!("interface {name} is up")),
                LinkChange::Down => self.report_link_change(&format!("interface {name} is down")),
            }
        }
        Ok(())
    }

    /// Reports a change of an interface: as a notice if the run needs interfaces, else as a detail.
    fn report_link_change(&self, text: &str) {
        match self.present.is_empty() {
            true => self.notices.detail(text),
            false => self.notices.notice(text),
        }
    }

    fn is_attached(&mut self, index: u32) -> bool {
        let mut hooks = self.hooks.iter_mut();
        hooks.any(|hook| hook.ifindex == index && hook.state.is_attached())
    }

    /// Ends the run if another process has detached a program, because later packets are missed.
    /// This reason replaces an earlier one.
    ///
    /// # Errors
    /// The kernel can't be asked about interfaces.
    pub fn check_hooks(&mut self) -> Result<()> {
        self.look_due = Instant::now() + LOOK_INTERVAL;
        self.check_moved_interfaces();
        if self.find_detached().is_none() {
            return Ok(());
        }
        // A hook is also detached when its interface is deleted. Netlink reports that, maybe later.
        self.read_link_events()?;
        let Some(at) = self.find_detached() else {
            return Ok(());
        };
        let hook = &self.hooks[at];
        let watch = self.watch.as_mut();
        if watch.is_none_or(|watch| watch.exists(hook.ifindex).unwrap_or(true)) {
            self.detached = Some(hook.name.clone());
            self.end(ExitReason::Detached);
            self.ended = Some(ExitReason::Detached);
        }
        Ok(())
    }

    /// The first hook that is not attached any more, on an interface that has not moved away.
    fn find_detached(&mut self) -> Option<usize> {
        let moved = &self.moved;
        self.hooks.iter_mut().position(|hook| {
            let has_moved = moved.iter().any(|event| event.index == hook.ifindex);
            !has_moved && !hook.state.is_attached()
        })
    }

    /// Stops following interfaces that were moved to another network namespace, once none of their hooks
    /// is attached any more.
    fn check_moved_interfaces(&mut self) {
        for event in std::mem::take(&mut self.moved) {
            if self.is_attached(event.index) {
                self.moved.push(event);
            } else {
                self.lose(&event);
            }
        }
    }

    fn lose(&mut self, event: &LinkEvent) {
        self.report_link_change(&format!("interface {} is gone", event.name));
        self.hooks.retain(|hook| hook.ifindex != event.index);
        let were = self.present.len();
        self.present.retain(|present| present.index != event.index);
        if self.present.is_empty() && were > 0 {
            self.end(ExitReason::InterfaceGone);
        }
    }
}
