//! Tests without a kernel: what a change means for the maps.

mod changes;
