//! Plain data as objects of Python, made without unpickling anything.

use manyhands::wire::pickle::Value;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyFrozenSet, PyList, PySet, PyTuple};

/// The value as Python has it; `None` if it holds an object that only its own code could build.
///
/// # Errors
///
/// What Python raises, for a key that has no hash for example.
pub(crate) fn to_python<'py>(
    py: Python<'py>,
    value: &Value,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(Some(match value {
        Value::None => py.None().into_bound(py),
        Value::Bool(truth) => truth.into_pyobject(py)?.to_owned().into_any(),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::BigInt(bytes) => {
            let keywords = PyDict::new(py);
            keywords.set_item("signed", true)?;
            let arguments = (PyBytes::new(py, bytes), "little");
            py.get_type::<pyo3::types::PyInt>().call_method(
                "from_bytes",
                arguments,
                Some(&keywords),
            )?
        }
        Value::Float(number) => number.into_pyobject(py)?.into_any(),
        Value::Str(text) => text.into_pyobject(py)?.into_any(),
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::ByteArray(bytes) => PyByteArray::new(py, bytes).into_any(),
        Value::List(items) => match all(py, items)? {
            Some(items) => PyList::new(py, items)?.into_any(),
            None => return Ok(None),
        },
        Value::Tuple(items) => match all(py, items)? {
            Some(items) => PyTuple::new(py, items)?.into_any(),
            None => return Ok(None),
        },
        Value::Set(items) => match all(py, items)? {
            Some(items) => PySet::new(py, items)?.into_any(),
            None => return Ok(None),
        },
        Value::FrozenSet(items) => match all(py, items)? {
            Some(items) => PyFrozenSet::new(py, items)?.into_any(),
            None => return Ok(None),
        },
        Value::Dict(pairs) => {
            let dict = PyDict::new(py);
            for (key, value) in pairs {
                let (Some(key), Some(value)) = (to_python(py, key)?, to_python(py, value)?) else {
                    return Ok(None);
                };
                dict.set_item(key, value)?;
            }
            dict.into_any()
        }
        _ => return Ok(None),
    }))
}

fn all<'py>(py: Python<'py>, values: &[Value]) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
    values.iter().map(|value| to_python(py, value)).collect()
}
