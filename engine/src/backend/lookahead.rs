//! Telling a batch which keys come next.

use varve_types::Command;

use super::{Batch, TreeId};

/// Commands whose keys are brought into the processor's cache at a time: as
/// many as a core has line fill buffers, about; more push each other out.
const NEAR: usize = 16;
/// Commands whose keys are read from the disk at a time: many reads at a time
/// are what a disk is fast at.
const FAR: usize = 512;

/// Goes over commands ahead of who applies them, and has the engine bring in
/// what they need: from memory a few ahead, from the disk many.
#[derive(Debug)]
pub struct Lookahead<'a, I> {
    near: Window<'a, I>,
    far: Window<'a, I>,
}

/// The first keys of some commands, up to which it was looked.
#[derive(Debug)]
struct Window<'a, I> {
    commands: I,
    keys: Vec<&'a [u8]>,
    /// Commands that were looked at and not applied yet.
    seen: usize,
}

impl<'a, I: Iterator<Item = (u8, &'a [u8])> + Clone> Lookahead<'a, I> {
    /// Stands before the first of `commands`: opcodes and bodies.
    pub fn new(commands: I) -> Self {
        Self {
            near: Window::new(commands.clone()),
            far: Window::new(commands),
        }
    }

    /// To be called before each command is applied; they go to `tree`.
    pub fn step(&mut self, batch: &mut dyn Batch, tree: TreeId) {
        if let Some(keys) = self.far.step(FAR) {
            batch.read_ahead(tree, keys);
        }
        if let Some(keys) = self.near.step(NEAR) {
            batch.prefetch(tree, keys);
        }
    }
}

impl<'a, I: Iterator<Item = (u8, &'a [u8])>> Window<'a, I> {
    fn new(commands: I) -> Self {
        Self {
            commands,
            keys: Vec::new(),
            seen: 0,
        }
    }

    /// Goes one command on; the keys of the next `most`, if one of them is next.
    fn step(&mut self, most: usize) -> Option<&[&'a [u8]]> {
        let is_due = self.seen == 0;
        if is_due {
            self.keys.clear();
            for (opcode, body) in self.commands.by_ref().take(most) {
                self.seen += 1;
                self.keys.extend(Command::first_key(opcode, body));
            }
        }
        self.seen = self.seen.saturating_sub(1);
        is_due.then_some(&self.keys[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_types::{Commands, PutRequest, push_command};

    #[test]
    fn every_key_is_told_once_and_before_its_command() {
        let mut bytes = Vec::new();
        for number in 0..40u32 {
            let put = Command::Put(PutRequest {
                key: &number.to_be_bytes(),
                ..PutRequest::default()
            });
            let mut body = Vec::new();
            put.encode_body(&mut body);
            push_command(&mut bytes, put.opcode(), &body);
        }
        let mut window = Window::new(Commands::new(&bytes).raw());
        let mut told = 0u32;
        for number in 0..40u32 {
            if let Some(keys) = window.step(NEAR) {
                assert_eq!(told, number);
                for key in keys {
                    assert_eq!(*key, told.to_be_bytes());
                    told += 1;
                }
            }
            assert!(told > number);
        }
        assert_eq!(told, 40);
    }
}
