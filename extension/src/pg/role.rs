//! Acting as the role that a shape is evaluated for, with settings that do not depend on the session.

use std::ffi::{CStr, CString, c_int};

use pgrx::PgSqlErrorCode::{ERRCODE_INSUFFICIENT_PRIVILEGE, ERRCODE_UNDEFINED_OBJECT};
use pgrx::pg_sys;

use crate::error::{Error, Result};

/// Settings that parsing, evaluation and output of values depend on, and what they are while a role is acted for.
/// Two sessions then read a where clause alike and write a value alike; that is also what lets [`super::expr`] take
/// functions that are STABLE only because of these settings for immutable.
const PINNED: &[(&CStr, &CStr)] = &[
    // how values are written and read
    (c"TimeZone", c"UTC"),
    (c"timezone_abbreviations", c"Default"),
    (c"DateStyle", c"ISO, DMY"),
    (c"IntervalStyle", c"iso_8601"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    (c"xmlbinary", c"base64"),
    (c"xmloption", c"content"),
    (c"array_nulls", c"on"),
    (c"lc_messages", c"C"),
    (c"lc_monetary", c"C"),
    (c"lc_numeric", c"C"),
    (c"lc_time", c"C"),
    // how an expression is read and written
    (c"standard_conforming_strings", c"on"),
    (c"backslash_quote", c"safe_encoding"),
    (c"transform_null_equals", c"off"),
    (c"quote_all_identifiers", c"off"),
];

/// While this lives, the backend acts as a role, inside a security-restricted operation and under [`PINNED`] settings.
/// Dropped, it puts everything back; when an error unwinds through it, the (sub)transaction's abort does.
#[must_use = "the role is left again when this is dropped"]
pub struct AsRole {
    user: pg_sys::Oid,
    security_context: c_int,
    guc_level: c_int,
}

impl AsRole {
    /// Starts to act as the role of that name. The session user must be a member of it, as for SET ROLE; where
    /// Postgres forbids SET ROLE because someone else's code may be running, the current user must be.
    pub fn enter(role: &str) -> Result<AsRole> {
        Ok(AsRole::switch_to(known(role)?))
    }

    /// The same for writing: triggers may do what they do for others, but for becoming somebody else, and find names as
    /// they do in the session.
    pub fn enter_to_write(role: &str) -> Result<AsRole> {
        let guard = AsRole::begin(known(role)?, pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int);
        PINNED.iter().for_each(|(name, value)| pin(name, value));
        Ok(guard)
    }

    fn switch_to(role: pg_sys::Oid) -> AsRole {
        let search_path = CString::new(search_path()).unwrap_or_default();
        let guard = AsRole::begin(role, pg_sys::SECURITY_RESTRICTED_OPERATION as c_int);
        pin(c"search_path", &search_path);
        PINNED.iter().for_each(|(name, value)| pin(name, value));
        guard
    }

    fn begin(role: pg_sys::Oid, restriction: c_int) -> AsRole {
        let mut guard = AsRole {
            user: pg_sys::InvalidOid,
            security_context: 0,
            guc_level: 0,
        };
        // SAFETY: the sequence of fmgr_security_definer() and of every command that runs a table owner's code. An
        // error on the way is undone by the abort of the (sub)transaction.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut guard.user, &mut guard.security_context);
            let restricted = guard.security_context | restriction;
            pg_sys::SetUserIdAndSecContext(role, restricted);
            guard.guc_level = pg_sys::NewGUCNestLevel();
        }
        guard
    }

    /// Gives settings of the form `prefix.name` a value until the role is left again, and leaves out what is none.
    pub fn set(&self, settings: &[(String, String)]) {
        for (name, value) in settings.iter().filter(|(name, _)| is_custom(name)) {
            let (Ok(name), Ok(value)) = (CString::new(name.as_str()), CString::new(value.as_str()))
            else {
                continue;
            };
            pin(&name, &value);
        }
    }
}

/// Whether the session may act as the role of that name.
pub fn require(role: &str) -> Result<()> {
    known(role).map(|_| ())
}

/// The role of that name, if the session may act as it.
fn known(role: &str) -> Result<pg_sys::Oid> {
    let name = CString::new(role).unwrap_or_default();
    // SAFETY: with missing_ok get_role_oid() returns InvalidOid for an unknown name.
    let oid = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    if oid == pg_sys::InvalidOid {
        let message = format!("role \"{role}\" does not exist");
        return Err(Error::Sql(ERRCODE_UNDEFINED_OBJECT, message, ""));
    }
    if !may_act_as(oid) {
        let message = format!("permission denied to act as role \"{role}\"");
        let hint = "The session user must be a member of the role.";
        return Err(Error::Sql(ERRCODE_INSUFFICIENT_PRIVILEGE, message, hint));
    }
    Ok(oid)
}

/// Is it the name of a setting that nobody but its users gives a meaning: identifiers, at least two, joined by dots?
fn is_custom(name: &str) -> bool {
    let is_identifier = |part: &str| {
        let mut chars = part.chars();
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.contains('.') && name.len() < 64 && name.split('.').all(is_identifier)
}

impl Drop for AsRole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: undoes switch_to() in reverse order, in the same transaction nesting level.
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.guc_level);
            pg_sys::SetUserIdAndSecContext(self.user, self.security_context);
        }
    }
}

/// Sets a setting until the nest level that was opened last ends. One that is so already is left alone: setting some of
/// them reads files.
pub(super) fn pin(name: &CStr, value: &CStr) {
    if is(name, value) {
        return;
    }
    // SAFETY: GUC_ACTION_SAVE ties the value to the nest level opened before; the strings are copied. PGC_SUSET, since
    // it is shapefeed that sets lc_messages and not the role.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

fn is(name: &CStr, value: &CStr) -> bool {
    // SAFETY: with missing_ok GetConfigOption() returns null for an unknown name, else a string that lives for now.
    unsafe {
        let current = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        !current.is_null() && CStr::from_ptr(current) == value
    }
}

/// `shapefeed.search_path` with pg_temp last, so that no temporary object of the session is found first.
fn search_path() -> String {
    format!(
        "{}, pg_temp",
        setting(c"shapefeed.search_path").unwrap_or_else(|| "pg_catalog, public".into())
    )
}

/// The value of one of the server's settings; None when there is no such setting.
pub fn setting(name: &CStr) -> Option<String> {
    // SAFETY: with missing_ok GetConfigOption() returns null for an unknown name, else a string that is copied here.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}

fn may_act_as(role: pg_sys::Oid) -> bool {
    // SAFETY: these only read the backend's state and the membership cache.
    unsafe {
        let current = pg_sys::GetUserId();
        let others_code = pg_sys::InLocalUserIdChange() || pg_sys::InSecurityRestrictedOperation();
        let member = if others_code {
            current
        } else {
            pg_sys::GetSessionUserId()
        };
        role == current || may_set_role(member, role)
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn may_set_role(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: reads the membership cache.
    unsafe { pg_sys::is_member_of_role(member, role) }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn may_set_role(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: reads the membership cache.
    unsafe { pg_sys::member_can_set_role(member, role) }
}

/// A role is this one or, at any distance, a member of it. A superuser is not taken for a member of all.
pub fn is_or_is_member_of(member: &str, role: &str) -> bool {
    if member == role {
        return true;
    }
    let oid = |name: &str| {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: with missing_ok get_role_oid() returns InvalidOid for an unknown name.
        unsafe { pg_sys::get_role_oid(name.as_ptr(), true) }
    };
    let (member, role) = (oid(member), oid(role));
    // SAFETY: reads the membership cache.
    let is_member = || unsafe { pg_sys::is_member_of_role_nosuper(member, role) };
    member != pg_sys::InvalidOid && role != pg_sys::InvalidOid && is_member()
}

/// The role is a superuser, who may see everything whatever is given to whom.
pub fn is_superuser(role: &str) -> bool {
    let name = CString::new(role).unwrap_or_default();
    // SAFETY: with missing_ok get_role_oid() returns InvalidOid for an unknown name, which is no superuser.
    unsafe { pg_sys::superuser_arg(pg_sys::get_role_oid(name.as_ptr(), true)) }
}

/// The name of the role that the backend acts as now.
pub fn current() -> String {
    // SAFETY: the current user exists, or GetUserNameFromId() raises; the string is copied.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Whether the current user may look up what is in the schema of a relation.
pub fn may_use_schema(relid: pg_sys::Oid) -> bool {
    // SAFETY: looks up the catalogs; a relation that is gone has no namespace, to which nobody has a right.
    unsafe {
        let namespace = pg_sys::get_rel_namespace(relid);
        if namespace == pg_sys::Oid::INVALID {
            return false;
        }
        let usage = pg_sys::AclMode::from(pg_sys::ACL_USAGE);
        let user = pg_sys::GetUserId();
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let answer = pg_sys::pg_namespace_aclcheck(namespace, user, usage);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let answer = pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, namespace, user, usage);
        answer == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// The first of these columns that the current user may not SELECT. As in a query, the right on the table covers all.
pub fn first_unreadable(relid: pg_sys::Oid, columns: &[i16]) -> Option<i16> {
    let ok = pg_sys::AclResult::ACLCHECK_OK;
    let select = pg_sys::AclMode::from(pg_sys::ACL_SELECT);
    // SAFETY: both look up the catalogs and raise only if the relation or column is gone.
    unsafe {
        let user = pg_sys::GetUserId();
        if pg_sys::pg_class_aclcheck(relid, user, select) == ok {
            return None;
        }
        columns
            .iter()
            .copied()
            .find(|&column| pg_sys::pg_attribute_aclcheck(relid, column, user, select) != ok)
    }
}
