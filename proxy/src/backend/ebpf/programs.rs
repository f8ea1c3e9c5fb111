//! Which programs there are and where they belong.

/// A program and the hook that it is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// Name of the program, and of its link's pin.
    pub(crate) name: &'static str,
    /// `enum bpf_attach_type`.
    pub(crate) attach_type: u32,
}

/// Programs of a cgroup, in the order in which they are attached: whoever sees an endpoint's address is told the
/// frontend's before anyone is sent to an endpoint.
pub(crate) const SOCKET_HOOKS: [Hook; 8] = [
    Hook {
        name: "getpeername4",
        attach_type: 29,
    },
    Hook {
        name: "getpeername6",
        attach_type: 30,
    },
    Hook {
        name: "recvmsg4",
        attach_type: 19,
    },
    Hook {
        name: "recvmsg6",
        attach_type: 20,
    },
    Hook {
        name: "sendmsg4",
        attach_type: 14,
    },
    Hook {
        name: "sendmsg6",
        attach_type: 15,
    },
    Hook {
        name: "connect4",
        attach_type: 10,
    },
    Hook {
        name: "connect6",
        attach_type: 11,
    },
];
