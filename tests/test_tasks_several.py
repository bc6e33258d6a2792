"Several labels per image: targets, heat per label, the probe per label, tables, runs, comparisons, and the old promises"
import json
import pytest, torch
import numpy as np, pandas as pd
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import attributions
from proxy_attention.attribution.tasks import find_task, need_one_label
from proxy_attention.attribution.targets import Each, Index
from proxy_attention.data.beds import two_digits
from proxy_attention.data.datasets import open_images
from proxy_attention.data.digits import ap_on, average_precisions, labels_learner, mean_ap
from proxy_attention.data.images import ImageLabels
from proxy_attention.experiment.arms import arms, find_arm
from proxy_attention.interpret.labels import LabelProbe, OneLabel
from proxy_attention.interpret.probe import Probe
from proxy_attention.proxy.successor import treatment

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning') # an image without red has no heat for it

@pytest.fixture(scope='module')
def bed(tmp_path_factory):
    "Digits 0, 1 and 3 in pairs; a red square stands for 'three'"
    return two_digits(tmp_path_factory.mktemp('several')/'bed', digits=(0,1,3), n_train=160, n_test=60)

class Red(nn.Module):
    "Predicts 'three' where there is red, 'one' where there is much white, and 'zero' never"
    def __init__(self, n_out=3):
        super().__init__()
        self.conv,self.pool,self.head = nn.Conv2d(3, 2, 1, bias=False),nn.AdaptiveAvgPool2d(1),nn.Linear(2, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.,-1,0],[0,1,0]])[...,None,None])
            self.head.weight.copy_(torch.tensor([[0.,40],[1000,0],[0,0]]))
            self.head.bias.copy_(torch.tensor([-6.4,-3,-5]))
    def forward(self, x): return self.head(self.pool(self.conv(x).relu()).flatten(1))

@pytest.fixture(scope='module')
def red(bed): return labels_learner(bed, Red, bs=16)

@pytest.fixture
def learn(bed): return labels_learner(bed, bs=32)

def test_the_bed(bed):
    about = pd.read_csv(bed/'about.csv')
    has,red = about.label.str.contains('three'),about.cue.notna()
    for part,should in dict(train=has, valid=has, plain=has&False, aligned=has, flipped=~has).items():
        at = about.part==part
        assert at.any() and (red==should)[at].all()
    assert set(pd.read_csv(bed/'labels.csv').part)=={'train','valid'} and len(pd.read_csv(bed/'flipped.csv'))==60
    for f,shown in zip(about.file, red): assert ((np.asarray(Image.open(bed/f))[0,0]==(230,25,75)).all())==shown
    with pytest.raises(ValueError, match="cannot stand for 'tree', did you mean 'three'"): two_digits(cue='tree')

def test_targets_by_name(red):
    task = find_task(red)
    assert task.per_label and task.target('three').i==1 and repr(task.target('margin'))=='predicted labels'
    assert task.index('zero')==2 and task.index(0)==0
    for bad in ('tree',7,True,-1):
        with pytest.raises(ValueError, match='There is no label'): task.index(bad)
    with pytest.raises(ValueError, match=r"No target is called 'tree', did you mean 'three'\? Available: label.*one, three, zero"):
        task.target('tree')
    with pytest.raises(ValueError, match='No target'): ProxyInterpretation.from_learner(red, target='tree')

def test_an_unknown_label_is_an_error_before_the_first_batch(learn, quiet, weights, same):
    before = weights(learn)
    with pytest.raises(ValueError, match="did you mean 'three'"): quiet(learn.add_cb(ProxyAttention(target='tree', start=1)), 'fit', 2)
    learn.remove_cb(ProxyAttention)
    with pytest.raises(ValueError, match='No target'): quiet(learn.add_cb(HeatDrift(target='tree')), 'fit', 1)
    assert same(before, weights(learn))

@pytest.mark.parametrize('name', ['GradCAM','LayerCAM','EigenCAM','FinerCAM','ScoreCAM','HiResCAM'])
def test_each_equals_a_pass_per_target(red, name):
    xb = red.dls.valid.one_batch()[0]
    asked = [0,1,torch.arange(len(xb))%3]
    both = attributions[name](red.model, target='pred', chunk=5).each(xb, asked)
    assert both.shape[:2]==(len(xb),3)
    for k,o in enumerate(asked): assert torch.allclose(both[:,k], attributions[name](red.model, target=o, chunk=5)(xb), atol=1e-6)
    with pytest.raises(ValueError, match='no target'): Each([])

def test_heat_of_all_labels_costs_one_pass(red):
    xb,attr,n = red.dls.valid.one_batch()[0],LayerCAM(red.model),[]
    attr.each(xb, [0]) # finds the layer
    h = red.model.register_forward_hook(lambda *o: n.append(1))
    attr.each(xb, [0,1,2])
    h.remove()
    assert len(n)==1 and attr.target.__class__.__name__=='Label'

def test_heats_of_labels(red):
    items = red.dls.valid_ds.items.iloc[:4]
    same = heats_of_labels(red, items, ['three',0])
    assert torch.equal(torch.stack(same)[:,0], heat_on(red, items, target='three')) and same[0].shape[0]==2
    own = heats_of_labels(red, items, [['three'],[],[2,1],[0]])
    assert [len(o) for o in own]==[1,0,2,1] and torch.equal(own[2][1], same[2][0])
    with pytest.raises(ValueError, match='1 lists of labels for 4 images'): heats_of_labels(red, items, [[0]])
    flat = heats_of_labels(red, items, ['one'], attribution=lambda xb,yb: xb[:,0])
    assert torch.allclose(flat[0][0].max(), torch.ones(()))

def test_the_probe_names_the_label_of_the_square(red):
    p = probe(red, 'train')
    assert next(iter(p))=='three' and p['three'].leans[0]=='place' and 'place' not in p['one'].leans
    w = p['three'].ways
    assert w.adds['place']>.9 and w.removes['place']>.9 and w.adds['random']<.3
    assert isinstance(p['three'], Probe) and p['three'].at_edge and p['three'].small<=.05
    assert "'three' relies on a small place; `ProxyAttention.shortcut(target='three'" in p.verdict()
    assert 'adds it in' in p.verdict() and 'removes it in' in p.verdict() and p.table.index[0]=='three'
    with pytest.raises(KeyError, match="'zero' is predicted in 0 training images"): p['zero']
    with pytest.raises(KeyError, match="did you mean 'three'"): p['tree']
    p.plot(), p['three'].plot(), p._repr_html_(), p['three']._repr_html_()

def test_the_probe_of_one_label(red):
    p = probe(red, 'train', label='three')
    assert isinstance(p, LabelProbe) and p.names==['without three','three'] and int(p.preds.sum())*2==len(p.preds)
    assert [*probe(red, 'train', label=['three'])]==['three']
    with pytest.raises(ValueError, match='There is no label'): probe(red, label='tree')
    with pytest.raises(ValueError, match="give label='three'"): probe(red, target='three')
    assert 'learned nothing about it yet' in probe(red, 'train', label='zero').verdict()
    x = red.dls.valid.one_batch()[0]
    assert torch.equal(OneLabel(red.model, 1)(x)[:,0]>0, red.model(x)[:,1]>0)

def test_a_label_is_asked_only_of_several(trained):
    with pytest.raises(TypeError, match='one label per image: leave it out'): probe(trained, label='3')

def test_the_treatment_is_that_of_the_label(red):
    found = probe(red, 'train')
    how = treatment(found, Masker('area', 'swap_both'))
    assert how['target']=='three' and how['area']<=.05
    assert treatment(found, Masker('area', 'swap_both'), kinds=('look',)) is False

def test_pictures(red):
    interp = ProxyInterpretation.from_learner(red)
    found = interp.labels_of([0])[0]
    assert all(t or s for _,_,t,s in found)
    axs = interp.plot_top_losses(3)
    said = [ax.get_title() for ax in axs.flat]
    assert any('missed' in o for o in said) and any(o.startswith('loss') for o in said)
    interp.plot_top_losses(3, heatmap=False)
    assert interp.show_heats([0,1], labels=['three','one']).shape==(3,2)
    interp.show_heats([0,1]), interp.plot_where(n=20), interp.plot_where('label', n=20)
    show_where(red, red.dls.valid_ds.items.iloc[:2], target='three')
    assert 'predicted labels' in repr(interp)

def test_metrics_of_explanations(red):
    items = red.dls.valid_ds.items.iloc[:8]
    df = explanation_scores(red, items, target='three', metrics=['deletion','insertion'])
    assert df.loc['auto','deletion']<df.loc['random','deletion']
    with pytest.raises(TypeError, match="the name of a label, such as target='one'"): explanation_scores(red, items, metrics='deletion')
    assert len(randomised(red, items, target='three', steps=1))==1

@pytest.mark.parametrize('call,words', [
    (lambda o: swapped_accuracy(o, 'rest'), 'probe each label instead'),
    (lambda o: o.fit_head(), 'train the whole model'),
    (lambda o: arms['last layer, afr'](labels_learner(o.dls.path, bs=32), 2, 1e-3), 'train the whole model'),
    (lambda o: arms['classes equally'](o, 2, 1e-3), 'leave this arm out')])
def test_what_needs_one_label_says_so(red, call, words):
    with pytest.raises(TypeError, match=f'one label per image, but this data has several labels.*{words}'): call(red)

def test_explain_images(red, bed, tmp_path):
    files = [bed/o for o in pd.read_csv(bed/'aligned.csv').file[:3]]
    found = explain_images(red, files, out=tmp_path/'runs', quiet=True)
    assert {'prob of one','prob of three','prob of zero'}<=set(found.table) and len(found.table)==3
    for f,o in zip(files, found.table.pred): assert ('three' in o.split(';'))==('three' in f.parent.name)
    assert len(list((found.run/'images').iterdir()))==3

def test_average_precision():
    t,p = torch.tensor([[1,0,0],[0,1,0.]]),torch.tensor([[.9,.1,.5],[.2,.8,.5]])
    assert np.allclose(average_precisions(t, p), [1,1,np.nan], equal_nan=True) and mean_ap(t, p)==1

@pytest.fixture
def table(bed, tmp_path):
    df = pd.read_csv(bed/'labels.csv')
    df['file'] = [str(bed/o) for o in df.file]
    df.to_csv(tmp_path/'own.csv', index=False)
    return tmp_path/'own.csv'

def test_a_table_of_several_labels(table, bed):
    o = open_images(table, label_delim=' ')
    assert isinstance(o, ImageLabels) and set(o.counts().index)=={'zero','one','three'} and 'labels' in repr(o)
    share = o.has[o.df.part=='valid'].sum()/o.has.sum()
    assert ((share>.15) & (share<.25)).all()
    assert o.df.equals(open_images(table, label_delim=' ').df)
    dls = o.dataloaders(bs=8, num_workers=0)
    assert list(dls.vocab)==['one','three','zero'] and dls.one_batch()[1].shape==(8,3)
    folds = o.folds(3)
    for i in range(3): assert (folds.has[folds.df.fold==i].sum()/folds.has.sum()).between(.25, .42).all()
    assert folds.fold(1).df.part.eq('valid').sum()==(folds.df.fold==1).sum()
    half = open_images(table, label_delim=' ', subset=.5)
    assert abs(len(half)-len(o)/2)<=2
    assert o.balance().n.tolist()==o.counts().tolist()

def test_odd_tables_of_several_labels(table, tmp_path):
    df = pd.read_csv(table)
    def write(**kw):
        df.assign(**kw).to_csv(tmp_path/'odd.csv', index=False)
        return tmp_path/'odd.csv'
    with pytest.raises(ValueError, match='n_per_class is for images of one class'): ImageLabels(table, n_per_class=3)
    with pytest.raises(ValueError, match='label_delim='): ImageLabels(table, label_delim='')
    with pytest.raises(ValueError, match='contains a semicolon'): ImageLabels(write(label=['a;b c']*len(df)))
    with pytest.raises(ValueError, match='No image of .* has a label'): ImageLabels(write(label=['']*len(df)))
    with pytest.raises(ValueError, match="The label 'rare' has a single image"): ImageLabels(write(label=['rare one',*df.label[1:]]))
    some = ImageLabels(write(label=['','one one three',*df.label[2:]]), valid_col='part')
    assert some.df.label[0]=='' and some.df.label[1]=='one;three'
    with pytest.raises(TypeError, match='cannot be renamed'): some.relabel({})

def test_a_group_stays_on_one_side(table):
    df = pd.read_csv(table)
    o = ImageLabels(table, groups=[f'g{i%20}' for i in range(len(df))])
    assert (o.df.groupby('group').part.nunique()==1).all() and o.df.part.nunique()==2

# the old promises

def test_bit_exact_when_idle(bed, quiet, weights, same):
    def none(losses): return torch.arange(0)
    a,b = (quiet(labels_learner(bed, bs=32, cbs=cbs), 'fit', 2, 1e-3) for cbs in (None,ProxyAttention(select=none, start=1)))
    assert same(weights(a), weights(b))

@pytest.mark.parametrize('kw', [dict(target='three'), dict(), dict(target='three', donor='other_class'), dict(labels='mix')])
def test_a_fit_serves_and_touches_nothing(bed, quiet, fingerprint, kw):
    was = fingerprint(bed)
    learn = labels_learner(bed, bs=32)
    cb = ProxyAttention.shortcut(p=1., area=.05, **kw)
    quiet(learn.add_cb(cb), 'fit', 2, 1e-3)
    steps = cb.fit_state.record.steps
    assert len(steps)==1 and cb.history.made.sum()>100 and cb.history.served.sum()>100 and fingerprint(bed)==was
    assert steps[0]['target']==('output 1' if kw.get('target') else 'predicted labels')
    if kw.get('donor'):
        has = cb.interp.targs[:,1]
        one = cb.served
        assert len(one) and (has[one.item.tolist()]!=has[one.donor.tolist()]).all()

def test_resume_is_bit_exact(bed, quiet, weights, same, tmp_path):
    def fit(name, stop=None):
        learn = labels_learner(bed, bs=32)
        cbs = [ProxyAttention.shortcut(target='three', area=.05),Checkpoint(tmp_path/name, resume=True)]
        class Stop(Callback):
            def after_epoch(self):
                if self.epoch==stop: raise KeyboardInterrupt
        learn.add_cbs(cbs)
        torch.manual_seed(3)
        try: quiet(learn, 'fit_one_cycle', 2, 1e-3, cbs=Stop())
        except KeyboardInterrupt: return fit(name)
        return weights(learn)
    assert same(fit('whole'), fit('parts', 0))

def test_workers_serve_the_same(bed, quiet):
    def fit(n):
        learn = labels_learner(bed, bs=32)
        learn.dls = DataLoaders(learn.dls.train.new(num_workers=n), learn.dls.valid)
        cb = ProxyAttention.shortcut(target='three', area=.05)
        quiet(learn.add_cb(cb), 'fit', 2, 1e-3)
        return cb
    a,b = fit(0),fit(1)
    assert set(a.served.item)==set(b.served.item) and len(b.served)>100
    i = int(b.served.item.iloc[0])
    shown = np.asarray(b.proxy_images([i])[0])
    donor = np.asarray(b.interp.learn.dls.train_ds[int(b.served.donor.iloc[0])][0])
    own = np.asarray(b.interp.learn.dls.train_ds[i][0])
    assert ((shown==own)|(shown==donor)).all() and (shown!=own).any()

def test_compare_measures_labels(bed, tmp_path):
    def test(learn): return learn.dls.test_dl(pd.read_csv(bed/'flipped.csv', dtype=str), with_labels=True)
    def make(seed): return labels_learner(bed, bs=32, seed=seed)
    def go(): return compare(make, ['no proxy','upweighted errors'], 1, 2, dict(flipped=test), lr=1e-3, folder=tmp_path/'cmp', bar=False)
    cmp = go()
    assert cmp.metric=='mean_ap' and set(cmp.groups.group)=={'one','three','zero'}
    df = cmp.groups.groupby(['arm','seed']).accuracy.agg(['mean','min']).reset_index().merge(cmp.df, on=['arm','seed'])
    assert np.allclose(df['mean'], df.mean_ap) and np.allclose(df['min'], df.worst)
    assert set(cmp.df.worst_group)<={'one','three','zero'}
    cmp.table(), cmp.verdict(), cmp.plot()
    assert go().df.equals(cmp.df)

@pytest.mark.limit(120)
def test_a_run_from_a_table(table, bed, tmp_path):
    said = []
    kw = dict(label_delim=' ', arch='resnet18', pretrained=False, size=32, bs=32, epochs=2, workers=0, augment='none', target='three',
        recipe='shortcut', area=.05, tests=f'flipped={tmp_path/"flipped.csv"}')
    df = pd.read_csv(bed/'flipped.csv')
    df.assign(file=[str(bed/o) for o in df.file]).to_csv(tmp_path/'flipped.csv', index=False)
    run = train_folder(table, tmp_path/'runs', say=said.append, **kw)
    text = '\n'.join(said)
    assert 'mean average precision' in text and 'drawn label by label' in text and "label_delim = \" \"" in (run/'config.toml').read_text()
    assert 'mean_ap' in pd.read_csv(run/'history.csv') and 'mean_ap' in pd.read_csv(run/'tests.csv')
    learn = load_run(run)
    assert list(learn.dls.vocab)==['one','three','zero'] and find_task(learn).per_label
    found = explain_images(run, bed/'aligned', out=tmp_path/'out', quiet=True, singles=False)
    assert 'prob of three' in found.table
    page = report_runs(run, quiet=True, n=8).read_text()
    assert 'three' in page and 'mean_ap' in page

def test_settings_keep_a_separator_that_is_a_space(tmp_path):
    from proxy_attention.cli import asked, proxy_train
    from proxy_attention.experiment.config import Config, changed, from_toml, to_toml
    said = asked(proxy_train, ['x.csv','--label-delim',' ','--target','palm'])
    assert said['label_delim']==' ' and said['target']=='palm'
    cfg = changed(Config(), label_delim=' ')
    (tmp_path/'c.toml').write_text(to_toml(cfg))
    assert from_toml(tmp_path/'c.toml').data.label_delim==' '
    assert changed(cfg, label_delim='none').data.label_delim is None and changed(cfg, label_delim='').data.label_delim is None

def test_the_log_of_several_labels(bed, quiet, tmp_path):
    quiet(labels_learner(bed, bs=32, cbs=RunBoard(tmp_path/'log')), 'fit', 1, 1e-3)
    tags = set(read_runs(tmp_path/'log').columns) if hasattr(read_runs(tmp_path/'log'), 'columns') else set()
    assert 'mean_ap' in tags

def test_heat_drift(bed, quiet):
    drift = HeatDrift(n=3, target='three')
    quiet(labels_learner(bed, bs=32, cbs=drift), 'fit', 2, 1e-3)
    assert len(drift.moved())==2 and all(set(o.split(';'))<={'one','three','zero'} for _,o in drift.pictures)
    drift.show()

def test_a_suspect_explains_a_label(red, bed, quiet):
    learn = labels_learner(bed, bs=32)
    cb = ProxyAttention.shortcut(target='three', area=.02, attribution=Suspect(red))
    quiet(learn.add_cb(cb), 'fit', 2, 1e-3)
    i = next(int(i) for i in cb.store if cb.interp.targs[i,1])
    assert int(cb.store[i].flatten().argmax())%cb.store[i].shape[1]<cb.store[i].shape[1]/4 # the square is at the left

# Learners that have learned nothing, and reports

def test_a_suspect_that_has_learned_nothing(learn, quiet):
    "It stopped `fit_proxy` with an `AttributeError`, after the whole fit"
    said = r'has learned nothing yet \(better than chance for 0 of \d frequent labels?\): nothing is masked'
    with pytest.warns(ProxyWarning, match=said):
        quiet(learn, 'fit_proxy', 2, 0.)

def test_rare_labels_are_no_sign_of_a_network_that_has_learned_nothing(red):
    "Each label is in fewer than 20 of these images, so the probe cannot tell"
    found = probe(red, red.dls.valid_ds.items[:18])
    assert found.due==0 and found.learned is None

def test_each_label_has_a_row_in_the_report(red, capsys):
    "fastai counts 0 and 1 as the first two labels"
    interp = ProxyInterpretation.from_learner(red)
    capsys.readouterr()
    interp.print_classification_report()
    rows = {o.split()[0]:o.split()[1:] for o in capsys.readouterr().out.splitlines() if o.strip()}
    _,targs,said = red.get_preds(with_decoded=True)
    for i,k in enumerate(red.dls.vocab):
        assert int(rows[k][-1])==int(targs[:,i].sum())
        right = float((targs[:,i]*said[:,i]).sum())
        assert float(rows[k][1])==pytest.approx(right/float(targs[:,i].sum()), abs=.006)
    with pytest.raises(TypeError, match='several labels, which are not confused with each other'): interp.plot_confusion_matrix()
