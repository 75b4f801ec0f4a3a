//! The custom resource definitions of [`crate::api`]'s types, as the chart ships them.

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::core::CustomResourceExt as _;

use crate::api::{Cluster, Community};

/// Why definitions cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// As YAML.
    #[error("writing the definition {name} as YAML")]
    Yaml {
        /// Which one.
        name: String,
        /// Why.
        source: serde_saphyr::SerializeError,
    },
    /// To a file.
    #[error("writing {path}")]
    Write {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A definition for one file of the chart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// `communities.fabedge.io`.
    pub name: String,
    /// The whole file.
    pub yaml: String,
}

/// All definitions, by name.
///
/// # Errors
/// When a schema holds what YAML cannot.
pub fn definitions() -> Result<Vec<Definition>, Error> {
    let cluster = with_optional_spec(without_defaults(Cluster::crd()));
    [cluster, without_defaults(Community::crd())]
        .into_iter()
        .map(|crd| {
            let name = crd.metadata.name.clone().unwrap_or_default();
            match serde_saphyr::to_string(&crd) {
                Ok(yaml) => Ok(Definition { name, yaml }),
                Err(source) => Err(Error::Yaml { name, source }),
            }
        })
        .collect()
}

/// Writes each definition to a file of its own in a folder that exists.
///
/// # Errors
/// Those of the file system.
pub fn write(folder: &Path) -> Result<(), Error> {
    for definition in definitions()? {
        let path = folder.join(format!("{}.yaml", definition.name));
        std::fs::write(&path, definition.yaml).map_err(|source| Error::Write {
            path: path.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

fn schemas(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    crd.spec
        .versions
        .iter_mut()
        .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
}

/// An object that has just been made to get a token has no spec. The API server makes it an empty one, so that
/// clients which read the object find what its type promises.
fn with_optional_spec(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for schema in schemas(&mut crd) {
        schema.required = None;
        let spec = schema.properties.as_mut().and_then(|map| map.get_mut("spec"));
        if let Some(spec) = spec {
            spec.default = Some(JSON(serde_json::json!({})));
        }
    }
    crd
}

/// Takes out the defaults that stand for `#[serde(default)]`: an API server would write them into every object, where
/// nobody could tell them from what a user said. (1.20 and older also refuse some of them.)
fn without_defaults(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    schemas(&mut crd).for_each(forget_defaults);
    crd
}

fn forget_defaults(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema
        .properties
        .iter_mut()
        .flat_map(|map| map.values_mut())
        .for_each(forget_defaults);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => forget_defaults(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(forget_defaults),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        forget_defaults(values);
    }
}

#[cfg(test)]
mod tests;
