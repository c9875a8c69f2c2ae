//! `ai.generate`: adapters as tables, and the block against stubs of each provider.
