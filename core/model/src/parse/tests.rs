//! Table tests of the parsers.
