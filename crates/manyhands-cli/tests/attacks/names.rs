//! Names and references that nobody needs: they do not stay for ever.
