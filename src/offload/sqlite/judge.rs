//! What a tenant's statement may do in an embedded database: everything inside its own file. Pure.
//!
//! Nothing leads out of the file (no other file, no extension, no setting), nothing outlives the statement but its data (no
//! transaction, nothing temporary), and the worker's own table is not there.

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use crate::blocks::sql::DEDUP;

/// What only says how a table is made.
const PRAGMAS: &[&str] =
    &["foreign_key_list", "index_info", "index_list", "index_xinfo", "table_info", "table_list", "table_xinfo"];
/// Kinds of tables that keep all of theirs in the file.
const MODULES: &[&str] = &["fts5", "rtree", "rtree_i32"];
/// Functions that reach out of it, where they are built in.
const FUNCTIONS: &[&str] = &["load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"];

/// Whether a statement may do it.
pub(super) fn judge(context: &AuthContext<'_>) -> Authorization {
    let among = |list: &[&str], name: &str| list.iter().any(|known| known.eq_ignore_ascii_case(name));
    let allowed = match context.action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => false,
        AuthAction::Pragma { pragma_name, .. } => among(PRAGMAS, pragma_name),
        AuthAction::Function { function_name } => !among(FUNCTIONS, function_name),
        AuthAction::CreateVtable { table_name, module_name } => among(MODULES, module_name) && !is_ours(table_name),
        AuthAction::CreateIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::CreateTable { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::DropTrigger { table_name, .. }
        | AuthAction::DropVtable { table_name, .. }
        | AuthAction::Insert { table_name }
        | AuthAction::Read { table_name, .. }
        | AuthAction::Update { table_name, .. }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::Analyze { table_name } => !is_ours(table_name),
        AuthAction::CreateView { .. }
        | AuthAction::DropView { .. }
        | AuthAction::Reindex { .. }
        | AuthAction::Select
        | AuthAction::Recursive => true,
        // What a newer version asks is not known to be harmless.
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

fn is_ours(table: &str) -> bool {
    table.eq_ignore_ascii_case(DEDUP)
}
