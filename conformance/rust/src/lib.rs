//! KVarN ([arXiv 2606.03458](https://arxiv.org/abs/2606.03458)) written from the description in `conformance/README.md`
//! and from no other implementation, to show that it is enough. In f64, as plainly as it can be said: nothing is fast.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod attend;
pub mod cache;
pub mod error;
pub mod half;
pub mod normalize;
pub mod pack;
pub mod record;
pub mod rotate;
pub mod save;
pub mod shape;
pub mod tokens;
