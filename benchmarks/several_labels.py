"""Several labels per image, and a shortcut for one of them: does the probe name that label, and is it cured without harm to the others?

python benchmarks/several_labels.py --seeds 5 writes several_labels.csv (one row per arm, seed, test part and label) and
several_labels_probe.csv (one row per seed and probed label of the network trained without proxies), and prints the tables.
python benchmarks/several_labels.py --cost prints what heat for three labels costs."""
import argparse, time, timm, warnings
from functools import partial
from pathlib import Path
import pandas as pd
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.beds import two_digits
from proxy_attention.data.digits import labels_learner
from proxy_attention.interpret.probe import probe
from proxy_attention.experiment.arms import fit_plain, with_proxies

cue,parts = 'three',('plain','aligned','flipped')

arms = {
    'no proxy':fit_plain,
    f'shortcut({cue})':with_proxies('shortcut', target=cue, area=.04),
    'shortcut(predicted)':with_proxies('shortcut', area=.04),
    'random mask':with_proxies('shortcut', rule='random', area=.04)}

def test(part, learn): return learn.dls.test_dl(pd.read_csv(learn.dls.path/f'{part}.csv', dtype=str), with_labels=True)

def cost(times=9, n=16, labels=3):
    "Processor time of heat for several labels, as a multiple of a forward pass of the same images (resnet18, 224 pixels, fp32)"
    torch.manual_seed(0)
    net,xb,took = timm.create_model('resnet18', num_classes=20).eval(),torch.randn(n, 3, 224, 224),{}
    attr = LayerCAM(net)
    calls = {'forward':lambda: net(xb.contiguous(memory_format=torch.channels_last)), 'forward, default layout':lambda: net(xb),
             '1 label':lambda: attr.each(xb, [0]), f'{labels} labels':lambda: attr.each(xb, range(labels))}
    for f in calls.values(): f()
    for _ in range(times):
        for k,f in calls.items():
            began = time.process_time()
            with torch.no_grad(): f()
            took.setdefault(k, []).append(time.process_time()-began)
    plain = np.median(took['forward'])
    for k,v in took.items(): print(f'{k}: {np.median(v)/plain:.2f} × a forward pass')

def main(seeds, epochs, out):
    warnings.simplefilter('ignore')
    beds,tables = {s:two_digits(seed=s, n_train=600, n_test=300) for s in range(seeds)},[]
    def make(seed): return labels_learner(beds[seed], bs=32, seed=seed)
    def plain(learn, epochs, lr):
        fit_plain(learn, epochs, lr)
        with learn.no_bar(): tables.append(probe(learn).table.reset_index().assign(seed=len(tables)))
    tests = {k:partial(test, k) for k in parts}
    cmp = compare(make, dict(arms)|{'no proxy':plain}, seeds, epochs, tests, lr=1e-2, bar=False)
    found = cmp.groups.rename(columns=dict(group='label', accuracy='ap'))
    found.round(4).to_csv(out/'several_labels.csv', index=False)
    probed = pd.concat(tables)
    probed.round(3).to_csv(out/'several_labels_probe.csv', index=False)
    by = found.assign(whose=found.label.where(found.label==cue, 'others')).groupby(['arm','seed','whose','test']).ap.mean()
    print((100*by).groupby(['arm','whose','test'], sort=False).agg(['mean','std']).round(1).unstack('test').to_string())
    print(probed.groupby('label')[['place','adds','removes','at_edge']].agg(['mean','std']).round(2).to_string())
    print('in first place:', probed.groupby('seed').label.first().tolist())
    print(cmp.verdict())

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--epochs', type=int, default=7)
    p.add_argument('--out', type=Path, default=Path(__file__).parent)
    p.add_argument('--cost', action='store_true')
    a = p.parse_args()
    cost() if a.cost else main(a.seeds, a.epochs, a.out)
