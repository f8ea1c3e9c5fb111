//! What the plugins of a server block say, one file for each that says much.

pub mod acl;
pub mod cache;
pub mod forward;
pub mod hosts;
pub mod kubernetes;
pub mod log;
pub mod rewrite;
pub mod small;
pub mod template;
