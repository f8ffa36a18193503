// Generated from the catalog. Do not edit.
export interface DB {}
