//! What to do when a mapped page cannot be read.
//!
//! A failing disk or a file cut by someone else shows itself to a mapping as
//! SIGBUS. The handler says which file and which page, and ends the process
//! with a clear line; the signal of anything else is passed on.
#![allow(unsafe_code)] // a signal handler

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The exit status of a process that lost a mapped page.
pub const EXIT_STATUS: i32 = 74; // EX_IOERR of sysexits.h

const SLOTS: usize = 64;
const PAGE_BYTES: usize = 4096;

/// One mapped range. `base` is 0 while the slot is free and is set last.
struct Slot {
    base: AtomicUsize,
    length: AtomicUsize,
    /// A leaked `Box<String>`: names are few, and the handler may look at any
    /// time, so they are never freed.
    name: AtomicPtr<String>,
}

static RANGES: [Slot; SLOTS] = [const {
    Slot {
        base: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
    }
}; SLOTS];

/// Marks a slot as being filled; no mapping starts there.
const TAKEN: usize = 1;

/// Keeps a range known to the handler.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        RANGES[self.slot].base.store(0, Ordering::SeqCst);
    }
}

/// Names the range for the handler; `None` if all slots are taken, in which case
/// a lost page is reported without a name.
pub(super) fn register(base: usize, length: usize, name: &str) -> Option<Guard> {
    let slot = RANGES.iter().position(|slot| {
        slot.base
            .compare_exchange(0, TAKEN, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    })?;
    let range = &RANGES[slot];
    let known = range.name.load(Ordering::SeqCst);
    // SAFETY: a name that is not null is a leaked box and lives for ever.
    let same = unsafe { known.as_ref() }.is_some_and(|known| known == name);
    if !same {
        range
            .name
            .store(Box::into_raw(Box::new(name.to_owned())), Ordering::SeqCst);
    }
    range.length.store(length, Ordering::SeqCst);
    range.base.store(base, Ordering::SeqCst);
    Some(Guard { slot })
}

/// Installs the handler for the whole process. To be called once by the node;
/// a second call does no harm.
pub fn install() -> std::io::Result<()> {
    // SAFETY: a zeroed sigaction is valid (no flags, empty mask, default action).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // SA_RESETHAND: a second fault, or one that is not ours, ends the process the usual way.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and only does
    // what is allowed in a signal handler.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo; si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    let found = RANGES.iter().find(|slot| {
        let base = slot.base.load(Ordering::SeqCst);
        base > TAKEN && address >= base && address - base < slot.length.load(Ordering::SeqCst)
    });
    // Not one of ours: SA_RESETHAND has restored the default, and returning faults again.
    let Some(slot) = found else { return };
    let offset = address - slot.base.load(Ordering::SeqCst);
    let name = slot.name.load(Ordering::SeqCst);
    // SAFETY: a name that is not null is a leaked box and lives for ever.
    let name = unsafe { name.as_ref() }.map_or("?", String::as_str);
    let mut line = Line::new();
    line.text("varve: fatal: ");
    line.text(name);
    line.text(": page ");
    line.number((offset / PAGE_BYTES) as u64);
    line.text(" (file offset ");
    line.number((offset / PAGE_BYTES * PAGE_BYTES) as u64);
    line.text(") cannot be read: the disk failed, or the file was cut by another program. ");
    line.text(
        "Check the disk (dmesg), then restart; nothing that was acknowledged is lost by stopping\n",
    );
    line.write();
    // SAFETY: _exit is allowed in a signal handler and runs no destructors.
    unsafe { libc::_exit(EXIT_STATUS) }
}

/// A line put together without allocating.
struct Line {
    bytes: [u8; 1024],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; 1024],
            length: 0,
        }
    }

    fn text(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [0u8; 20];
        let mut count = 0;
        loop {
            digits[count] = b'0' + (number % 10) as u8;
            count += 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        while count > 0 {
            count -= 1;
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = digits[count];
                self.length += 1;
            }
        }
    }

    fn write(&self) {
        // SAFETY: the bytes are valid for `length`; write is allowed in a signal handler.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
    }
}
