"""The modelling file of an exported mixture; `convert.assemble` copies it, nothing else imports it."""
