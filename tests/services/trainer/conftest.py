from tests.support.runs import bar_shard, dataset, make_spec, make_trainer, teacher

__all__ = ["bar_shard", "dataset", "make_spec", "make_trainer", "teacher"]
