//! `deploy/` as the cluster's API knows it: every field is one of the kind's, and the settings are
//! ones that a server starts with.

use std::{collections::BTreeMap, fs, path::Path};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, PersistentVolumeClaim, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use rdev::config::{Config, Settings};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::Value;

fn deploy() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"))
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("a file of ours");
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{}: {e}", file.display())))
        .collect()
}

/// A field that the kind does not know does not come back.
fn comes_back<K: DeserializeOwned + Serialize>(document: &Value) {
    let known: K = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"));
    assert_eq!(&serde_json::to_value(known).expect("JSON"), document);
}

#[test]
fn every_object_is_one_that_the_api_knows() {
    let mut kinds = 0;
    for folder in [deploy().to_owned(), deploy().join("embedded-git")] {
        let files = fs::read_dir(&folder).expect("it is there").flatten().map(|entry| entry.path());
        for file in files.filter(|file| file.extension().is_some_and(|it| it == "yaml")) {
            for document in documents(&file) {
                match document["kind"].as_str().expect("a kind") {
                    "Deployment" => comes_back::<Deployment>(&document),
                    "Namespace" => comes_back::<Namespace>(&document),
                    "NetworkPolicy" => comes_back::<NetworkPolicy>(&document),
                    "PersistentVolumeClaim" => comes_back::<PersistentVolumeClaim>(&document),
                    "PodDisruptionBudget" => comes_back::<PodDisruptionBudget>(&document),
                    "Role" => comes_back::<Role>(&document),
                    "RoleBinding" => comes_back::<RoleBinding>(&document),
                    "Service" => comes_back::<Service>(&document),
                    "ServiceAccount" => comes_back::<ServiceAccount>(&document),
                    "Kustomization" | "Component" => continue,
                    other => panic!("{}: a {other} is not looked at", file.display()),
                }
                kinds += 1;
            }
        }
    }
    assert!(kinds >= 10, "{kinds} objects");
}

#[test]
fn the_settings_are_ones_that_a_server_starts_with() {
    let kustomization = documents(&deploy().join("kustomization.yaml")).remove(0);
    let literals = kustomization["configMapGenerator"][0]["literals"].as_array().expect("literals").clone();
    let secrets = fs::read_to_string(deploy().join("secrets.env.example")).expect("the example");
    let lines = literals.iter().filter_map(Value::as_str).chain(secrets.lines());
    // The way to the cluster: in a pod its service account, here any file.
    let way = concat!("KUBECONFIG=", env!("CARGO_MANIFEST_DIR"), "/deploy/kustomization.yaml");
    let settings: BTreeMap<String, String> = lines
        .chain(["RDEV_NAMESPACE=rdev", way])
        .map(|line| line.split_once('=').expect("name and value"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(settings["RDEV_RUNTIME"], "kubernetes");
    let settings = Settings::overlay(&BTreeMap::new(), &settings, None).expect("all of them are known");
    let config = Config::parse(&settings).map(drop);
    assert_eq!(config, Ok(()));
}

#[test]
fn the_pipelines_are_yaml() {
    for file in fs::read_dir(deploy().join("ci")).expect("it is there").flatten() {
        let [pipeline] = &documents(&file.path())[..] else { panic!("{file:?}: one document") };
        assert!(pipeline["jobs"].is_object() || pipeline["steps"].is_array(), "{file:?}");
    }
}
