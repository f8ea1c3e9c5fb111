//! The cluster as Portolan sees it.
//!
//! A source parses Kubernetes objects into the types of this crate ([`parse`]), wraps them in [`Event`]s, and a daemon
//! applies those to its [`World`]. The [`Delta`] names the Services that an event changed; everything behind it (plan,
//! backend, zone) works on those only.
//!
//! This crate is pure: it never does I/O, never looks at a clock, and never fails as a whole because of one bad object.

pub mod endpoint;
pub mod import;
pub mod name;
pub mod node;
pub mod parse;
pub mod selector;
pub mod service;
pub mod world;

pub use endpoint::{Conditions, Endpoint, EndpointNames, EndpointPort, EndpointSlice, Hints};
pub use import::{Imported, ServiceImport};
pub use name::{EndpointSliceName, Interner, NamespacedName, PodName, ServiceName};
pub use node::{Namespace, Node, Pod, ServiceCidr};
pub use parse::{Fault, ObjectRef};
pub use selector::{Selector, SelectorError};
pub use service::{Family, IpMode, LoadBalancerIngress, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};
pub use world::{Delta, Event, ImportView, Object, ObjectKey, PortEndpoint, ServiceView, World};
