"Does the cure of a shortcut outlast pruning? Digits, 80 % of the weights, five seeds: writes `prune_seeds.csv`"
import warnings
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import torch
    from fastai.vision.all import *
    from proxy_attention.all import *
    from proxy_attention.experiment.prune import Prune

torch.set_num_threads(1)
here = Path(__file__).parent

def run(learn, how, n, lr):
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        getattr(learn, how)(n, lr)
    return learn

def row(seed, arm, learn, path):
    return dict(seed=seed, arm=arm, plain=accuracy_on(learn, path/'plain'), flipped=accuracy_on(learn, path/'flipped'),
        zero=Prune.sparsity(pruner(learn)))
def pruner(learn):
    p = Prune()
    p.learn = learn
    return p

def arms(seed):
    path = digits(seed=seed)
    one = {
        'without':[],
        'pruned':[Prune(.8)],
        'proxies':[ProxyAttention.shortcut()],
        'proxies and pruned':[ProxyAttention.shortcut(), Prune(.8)]}
    for arm,cbs in one.items():
        learn = run(digits_learner(path, seed, cbs=cbs), 'fit_proxy' if 'proxies' in arm else 'fit_one_cycle', 10, 3e-3)
        yield row(seed, arm, learn, path)
        if arm=='proxies': cured = {k:v.clone() for k,v in learn.model.state_dict().items()}
    then = {
        'cured, then trained':[],
        'cured, then pruned':[Prune(.8)],
        'cured, then pruned at random':[Prune(.8, method='random')],
        'cured, then new proxies and pruned':[ProxyAttention.shortcut(), Prune(.8)]}
    for arm,cbs in then.items():
        learn = digits_learner(path, seed, cbs=cbs)
        learn.model.load_state_dict(cured)
        yield row(seed, arm, run(learn, 'fit_one_cycle', 4, 1e-3), path)

if __name__=='__main__':
    rows = []
    for seed in range(5):
        for o in arms(seed):
            rows.append(o)
            print(o, flush=True)
    pd.DataFrame(rows).round(4).to_csv(here/'prune_seeds.csv', index=False)
