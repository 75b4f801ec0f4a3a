//! Command line: the only reader of flags and environment.
