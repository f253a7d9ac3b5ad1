//! Atomics and shared cells of the code that is model-checked: the standard
//! library's, or with `--cfg loom` those of loom, which visits every schedule
//! and every stale value that the memory model allows.
//!
//! `btree/tests/models.rs` has the models. Without that cfg this is a name for
//! the standard library's types and costs nothing.

pub(crate) use imp::{AtomicU64, AtomicUsize, UnsafeCell};

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize};

    /// A cell whose content is reached for the length of a call, so that loom can
    /// see when it is.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(content: T) -> Self {
            Self(std::cell::UnsafeCell::new(content))
        }

        /// Reads; what is pointed to must not be written meanwhile.
        #[inline(always)]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        /// Writes; what is pointed to must not be reached by others meanwhile.
        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::cell::UnsafeCell;
    use loom::sync::atomic::{Ordering, fence};

    use crate::mutations::{Mutation, is_on};

    /// Loom takes sequentially consistent accesses for acquire and release ones.
    /// A fence on both sides gives back what they promise beyond that, as long as
    /// all accesses of the variables in question are such.
    fn in_order<R>(order: Ordering, access: impl FnOnce() -> R) -> R {
        if order != Ordering::SeqCst || is_on(Mutation::NoTotalOrder) {
            return access();
        }
        fence(Ordering::SeqCst);
        let result = access();
        fence(Ordering::SeqCst);
        result
    }

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            #[derive(Debug)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    in_order(order, || self.0.load(order))
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    in_order(order, || self.0.store(value, order));
                }
            }
        };
    }

    atomic!(AtomicU64, u64);
    atomic!(AtomicUsize, usize);

    impl AtomicU64 {
        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            in_order(order, || self.0.fetch_add(value, order))
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            in_order(order, || self.0.fetch_sub(value, order))
        }
    }
}
