pub fn check(_: &dyn crate::meta::MetaStore) -> Vec<String> {
    vec![]
}
