//! Telling a batch which keys come next.

use std::ops::Range;

use varve_types::{Command, opcode};

use super::{Batch, TreeId};

/// Commands whose keys are brought into the processor's cache at a time: as
/// many as a core has line fill buffers, about; more push each other out.
pub(crate) const NEAR: usize = 16;
/// Commands whose keys are read from the disk at a time: many reads at a time
/// are what a disk is fast at.
pub(crate) const FAR: usize = 512;

/// Goes over commands ahead of who applies them, and has the engine bring in
/// what they need: from memory a few ahead, from the disk many.
#[derive(Debug)]
pub struct Lookahead<'a, I> {
    commands: I,
    /// The first keys of [`FAR`] commands; the empty key for those that have none.
    keys: Vec<&'a [u8]>,
    /// Which of them is applied next.
    next: usize,
    /// Those of them that are deleted, whose values are read whatever becomes of them.
    doomed: Vec<&'a [u8]>,
}

impl<'a, I: Iterator<Item = (u8, &'a [u8])>> Lookahead<'a, I> {
    /// Stands before the first of `commands`: opcodes and bodies.
    pub fn new(commands: I) -> Self {
        Self {
            commands,
            keys: Vec::new(),
            next: 0,
            doomed: Vec::new(),
        }
    }

    /// To be called before each command is applied; they go to `tree`, and with
    /// `whole` need all of the values there.
    pub fn step(&mut self, batch: &mut dyn Batch, tree: TreeId, whole: bool) {
        let next = self.advance();
        if next.is_empty() {
            return;
        }
        if next.start == 0 {
            batch.read_ahead(tree, &self.keys, whole);
            if !whole && !self.doomed.is_empty() {
                batch.read_ahead(tree, &self.doomed, true);
            }
        }
        batch.prefetch(tree, &self.keys[next]);
    }

    /// Goes one command on. Where the next few keys begin with this command's, they;
    /// at the beginning of `keys`, which are other ones then, at 0.
    fn advance(&mut self) -> Range<usize> {
        if self.next == self.keys.len() {
            let next = self.commands.by_ref().take(FAR);
            self.keys.clear();
            self.doomed.clear();
            for (opcode, body) in next {
                let key = Command::first_key(opcode, body).unwrap_or_default();
                self.keys.push(key);
                if opcode == opcode::DELETE_RANGE {
                    self.doomed.push(key);
                }
            }
            self.next = 0;
        }
        let next = self.next;
        let end = self.keys.len();
        self.next = end.min(next + 1);
        match next.is_multiple_of(NEAR) {
            true => next..end.min(next + NEAR),
            false => next..next,
        }
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
        let mut ahead = Lookahead::new(Commands::new(&bytes).raw());
        let mut told = 0u32;
        for number in 0..40u32 {
            let next = ahead.advance();
            if !next.is_empty() {
                assert_eq!(told, number);
                assert_eq!(next.start == 0, number == 0, "all are asked for at once");
                assert_eq!(ahead.keys.len(), 40);
                for key in &ahead.keys[next] {
                    assert_eq!(*key, told.to_be_bytes());
                    told += 1;
                }
            }
            assert!(told > number);
        }
        assert!(ahead.advance().is_empty());
        assert_eq!(told, 40);
    }
}
