//! Which proxies of a manager's objects an item carries.
//!
//! A proxy is pickled as the call `RebuildProxy(type, token, serializer, keywords)`, and its token as
//! an instance of `Token` whose state is `(type, address, ident)`. One pass replays the opcodes on a
//! stack that knows these parts and nothing else: text that only looks like them is no opcode, and
//! nothing is built or called.

use std::collections::{BTreeMap, BTreeSet};

use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::{Payload, PickleError, atom};

const MODULE: &str = "multiprocessing.managers";
/// Longest text that may be part of a proxy, in bytes: idents are shorter.
const TEXT_LEN_MAX: usize = 128;
/// Values on the stack at one time. What is pickled inside of more is not looked at.
const HEIGHT_MAX: usize = 1 << 16;
/// Memo entries that may be parts of a proxy. Later ones are not known when they are read again.
const KNOWN_MAX: usize = 1 << 16;
/// Proxies of one item that are told apart.
const PROXIES_MAX: usize = 1 << 12;

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'p> {
    Other,
    Mark,
    Text(&'p str),
    /// The function `RebuildProxy`.
    Rebuild,
    /// The class `Token`.
    TokenClass,
    /// An instance of it, without a state so far.
    BareToken,
    /// A tuple of three, of which the last is this text.
    State(&'p str),
    /// A token of the object with this ident.
    Token(&'p str),
    /// A tuple of four, of which the second is such a token.
    Arguments(&'p str),
}

impl Payload {
    /// The idents of the objects whose proxies the item carries.
    ///
    /// Takes time proportional to the length of the payload, and never fails: what cannot be read
    /// carries no proxy.
    #[must_use]
    pub fn proxies(&self) -> BTreeSet<String> {
        let mut pass = Pass::default();
        // A pass that ends early has still found what came before.
        pass.run(&self.bytes).unwrap_or_default();
        pass.found
    }
}

#[derive(Debug, Default)]
struct Pass<'p> {
    stack: Vec<Part<'p>>,
    memo: BTreeMap<usize, Part<'p>>,
    /// Memo entries stored so far.
    stored: usize,
    found: BTreeSet<String>,
}

impl<'p> Pass<'p> {
    fn run(&mut self, pickle: &'p [u8]) -> Result<(), PickleError> {
        for op in Opcodes::new(pickle) {
            let applied = self.apply(&op?)?;
            if applied.is_none() || self.stack.len() > HEIGHT_MAX {
                break;
            }
        }
        Ok(())
    }

    /// `None`: the opcodes are no pickle.
    fn apply(&mut self, op: &Op<'p>) -> Result<Option<()>, PickleError> {
        match op.effect {
            Effect::Nothing => {}
            Effect::Constant => self.stack.push(constant(op)),
            Effect::Container => self.stack.push(Part::Other),
            Effect::Mark => self.stack.push(Part::Mark),
            Effect::Build(count) => return Ok(self.build(op, count.into())),
            Effect::BuildFromMark => return Ok(self.build_from_mark(op)),
            Effect::Change(count) => return Ok(self.change(op, count.into())),
            Effect::ChangeFromMark | Effect::PopMark => return Ok(self.since_mark().map(drop)),
            Effect::Pop => return Ok(self.stack.pop().map(drop)),
            Effect::Dup => self.stack.extend_from_within(self.stack.len().saturating_sub(1)..),
            Effect::Store => {
                self.store(op.memo_index(self.stored)?);
                self.stored += 1;
            }
            Effect::Fetch => {
                let index = op.memo_index(self.stored)?;
                self.stack.push(self.memo.get(&index).copied().unwrap_or(Part::Other));
            }
            Effect::Stop | Effect::Outside => return Ok(None),
        }
        Ok(Some(()))
    }

    fn store(&mut self, index: usize) {
        match self.stack.last() {
            Some(&part) if part != Part::Other && self.memo.len() < KNOWN_MAX => {
                self.memo.insert(index, part);
            }
            _ => drop(self.memo.remove(&index)),
        }
    }

    /// Puts one value in the place of the top `count`.
    fn build(&mut self, op: &Op<'p>, count: usize) -> Option<()> {
        let from = self.stack.len().checked_sub(count)?;
        let built = match (op.opcode, self.stack.get(from..)?) {
            (Opcode::StackGlobal, &[Part::Text(module), Part::Text(name)]) => named(module, name),
            (Opcode::NewObj, [Part::TokenClass, _]) => Part::BareToken,
            (Opcode::Tuple3, &[_, _, Part::Text(ident)]) => Part::State(ident),
            (Opcode::Reduce, &[Part::Rebuild, Part::Arguments(ident)]) => {
                if self.found.len() < PROXIES_MAX {
                    self.found.insert(ident.to_owned());
                }
                Part::Other
            }
            _ => Part::Other,
        };
        self.stack.truncate(from);
        self.stack.push(built);
        Some(())
    }

    fn build_from_mark(&mut self, op: &Op<'p>) -> Option<()> {
        let items = self.since_mark()?;
        let built = match (op.opcode, &*items) {
            (Opcode::Tuple, &[_, Part::Token(ident), _, _]) => Part::Arguments(ident),
            _ => Part::Other,
        };
        self.stack.push(built);
        Some(())
    }

    /// Takes the top `count` values into the one below them.
    fn change(&mut self, op: &Op<'p>, count: usize) -> Option<()> {
        let taken = self.stack.split_off(self.stack.len().checked_sub(count)?);
        let target = self.stack.last_mut()?;
        if let (Opcode::Build, Part::BareToken, &[Part::State(ident)]) =
            (op.opcode, *target, &*taken)
        {
            *target = Part::Token(ident);
        }
        Some(())
    }

    /// Takes what is above the topmost mark, and the mark.
    fn since_mark(&mut self) -> Option<Vec<Part<'p>>> {
        let mark = self.stack.iter().rposition(|part| *part == Part::Mark)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Some(items)
    }
}

fn constant<'p>(op: &Op<'p>) -> Part<'p> {
    if op.opcode == Opcode::Global {
        let (module, name) = op.lines();
        return match (std::str::from_utf8(module), std::str::from_utf8(name)) {
            (Ok(module), Ok(name)) => named(module, name),
            _ => Part::Other,
        };
    }
    match atom::verbatim(op) {
        Some(text) if text.len() <= TEXT_LEN_MAX => Part::Text(text),
        _ => Part::Other,
    }
}

fn named<'p>(module: &str, name: &str) -> Part<'p> {
    match (module, name) {
        (MODULE, "RebuildProxy") => Part::Rebuild,
        (MODULE, "Token") => Part::TokenClass,
        _ => Part::Other,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::Limits;
    use super::*;

    fn found(pickle: &[u8]) -> Vec<String> {
        let payload = Payload::from_standalone(Bytes::copy_from_slice(pickle), &Limits::default());
        payload.unwrap().proxies().into_iter().collect()
    }

    /// `RebuildProxy(type, token, 'pickle', {})` as Python 3.12 pickles it in protocol 4.
    const STACK: &[u8] = b"\x80\x04\x8c\x18multiprocessing.managers\x94\x8c\x0cRebuildProxy\x94\x93\
        \x94(h\x00\x8c\tAutoProxy\x94\x93\x94h\x00\x8c\x05Token\x94\x93\x94)\x81\x94\x8c\x05tasks\x94\
        \x8c\t127.0.0.1\x94M\x39\x30\x86\x94\x8c\x067f3a20\x94\x87\x94b\x8c\x06pickle\x94}\x94t\x94R\
        \x94.";
    /// The same as Python 2 does.
    const GLOBAL: &[u8] = b"\x80\x02cmultiprocessing.managers\nRebuildProxy\nq\x00(c\
        multiprocessing.managers\nAutoProxy\nq\x01cmultiprocessing.managers\nToken\nq\x02)\x81q\x03U\
        \x05tasksq\x04U\t127.0.0.1q\x05M\x39\x30\x86q\x06U\x067f3a20q\x07\x87q\x08bU\x06pickleq\x09}\
        q\x0atq\x0bRq\x0c.";

    #[test]
    fn a_proxy_is_found_in_the_form_of_every_python() {
        assert_eq!(found(STACK), ["7f3a20"]);
        assert_eq!(found(GLOBAL), ["7f3a20"]);
    }

    #[test]
    fn a_proxy_is_found_among_other_things_and_told_once() {
        let one = &STACK[2..STACK.len() - 1];
        let list = [b"\x80\x04](K\x01", one, b"h\x0d\x8c\x01x", b"e."].concat();
        assert_eq!(found(&list), ["7f3a20"]);
    }

    #[test]
    fn text_that_looks_like_a_proxy_is_none() {
        let len = u8::try_from(STACK.len()).unwrap();
        let quoted = [b"\x80\x04C", &[len][..], STACK, b"."].concat();
        for pickle in [
            &b"\x80\x04\x8c\x0cRebuildProxy."[..],
            b"\x80\x02cos\nsystem\nU\x0cRebuildProxy\x85R.",
            b"\x80\x02cmultiprocessing.managers\nRebuildProxy\n.",
            b"\x80\x02cother.managers\nRebuildProxy\n(NNNNtR.",
            &quoted,
        ] {
            assert_eq!(found(pickle), [""; 0], "{}", pickle.escape_ascii());
        }
    }

    #[test]
    fn what_ends_early_or_is_too_high_is_left_alone() {
        let one = &STACK[2..STACK.len() - 1];
        let high = [b"\x80\x04(", &b"N".repeat(HEIGHT_MAX)[..], one, b"t."].concat();
        assert_eq!(found(&high), [""; 0]);
        let payload = Payload::pickle(4, Bytes::from_static(b"RebuildProxy"));
        assert!(payload.proxies().is_empty());
    }
}
