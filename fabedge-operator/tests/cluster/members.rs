//! Member clusters at a host: how one joins, what the network API refuses, and what it bears.
//!
//! What could be done to FabEdge 0.4 to 1.0, and the test that tries it now. Those without a file are here and in
//! `rotation` beside, where the operator runs on a real API server; `federation` is `src/federation/tests.rs`, over TLS.
//!
//! | | weakness | tried by |
//! |---|---|---|
//! | 1 | who calls was read from a header | `attacks::who_calls_is_what_the_certificate_says` |
//! | 2 | any certificate of the CA opened the API, an edge's too | the same |
//! | 3 | any name and any alternative name was signed | `attacks::a_request_is_signed_by_its_key_and_for_a_name_of_its_own` |
//! | 4 | a request's own signature was not looked at | the same |
//! | 5 | a token let in anybody, any number of times | `tokens::a_token_lets_one_key_of_one_cluster_in_and_only_in_time` |
//! | 6 | a short Authorization header ended in a panic | the same |
//! | 7 | a certificate that could not be signed was sent all the same | `federation`: `what_cannot_be_signed_is_no_certificate_and_no_fault_of_who_asks` |
//! | 8 | no limits of size and time | `bounds` |
//! | 9 | each handler was to ask for a client certificate by itself | `attacks::who_calls_is_what_the_certificate_says`; `federation`: `every_route_lets_in_whom_the_table_names_and_nothing_else_is_there` |
//! | 10 | a member believed whoever answered | `impostors`; that the token tells the CA: `tokens::a_token_is_renewed_until_it_is_used_and_is_written_nowhere_else` |
//! | 11 | the operator could read every Secret | `tests/tests/release/rights.rs`: `everybody_may_do_what_must_be_done_and_no_more` |
//! | 12 | the token stood among the arguments | `tokens::a_token_is_renewed_until_it_is_used_and_is_written_nowhere_else`, `impostors`; `tests/tests/chart/manifests.rs`: `a_members_token_is_in_a_file_and_nowhere_else` |
//! | 13 | a token that had expired stayed | `tokens::a_token_is_renewed_until_it_is_used_and_is_written_nowhere_else` |
//! | 14 | a member could claim any name and prefix | `reports` |
//! | 15 | `bei` passed for `beijing` | `attacks::the_beginning_of_a_name_is_not_the_name` |
//! | 16 | certificates of ten years, never renewed or revoked | `attacks::a_request_is_signed_by_its_key_and_for_a_name_of_its_own` (90 days), `src/pki/tests.rs`: `a_leaf_is_kept_until_two_thirds_and_renewed_for_cause`, `rotation`; `fabedge-agent/tests/charon.rs`: `who_is_revoked_goes_and_stays_away_and_others_stay` |

mod attacks;
mod bounds;
mod client;
mod host;
mod impostors;
mod joining;
mod polling;
mod replays;
mod replicas;
mod reports;
mod tokens;
