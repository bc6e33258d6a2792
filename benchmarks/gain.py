"""Does looking help when nothing is wrong? `python benchmarks/gain.py DATA OUT --bed cub --seeds 11-15 --processes 10`

Every arm is trained on data in which nobody planted anything, with every seed. Each run is appended to OUT/BED.jsonl when it is done, and
the same command goes on where it was stopped, in as many processes and on as many calls as you like; a run that fails is written down in
OUT/failed, and the others go on. At the end the tables are written: `gain.csv`, a row per run, and `gain_stats.csv`, the paired
differences. `--equal-seconds` adds, for each arm, the plain fit that is as many epochs longer as the arm has taken more time.
`--tune` asks each recipe for several chances `p`, and sees validation images alone.
A recipe stands beside its twin, which does the same without heat: keep beside `random keep`, vitamin beside `random rest`, snapmix beside
`snapmix by area`, saliencymix beside `random box`, attentive_cutmix beside `random cells`, each with its chance, as `random cells(p=0.25)`.
`--gather-only` trains nothing. DATA is described in `gain_beds.py`. On a GPU the networks train in bfloat16, here as well if it can."""
import json, re, subprocess, sys, time, traceback, warnings
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastcore.script import call_parse, store_true
from filelock import FileLock, Timeout
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.learner import Recorder
from fastai.torch_core import default_device
from proxy_attention.attribution.cams import half_type
from proxy_attention.core import by_name, refuse_number, write_json
from proxy_attention.experiment.arms import find_arm, mixing_batches, random_erasing, split_arms, with_proxies
from proxy_attention.experiment.compare import Comparison, paired, run_arm
from proxy_attention.experiment.identity import refuse_other, versions, what_is
from proxy_attention.interpret.heats import heat_on
from proxy_attention.interpret.metrics import pointing_game
from proxy_attention.masking.rules import top_cells
from proxy_attention.proxy.fits import one_cycle
from proxy_attention.proxy.recipes import recipes
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from gain_beds import Pictures, beds, learner, taken, tests

usual = ('one cycle','erasing(p=0.5)','mixup','cutmix','random box','random rest','keep','vitamin','snapmix','saliencymix',
         'attentive_cutmix','default(p=0.5)')
baseline = 'one cycle' # as the recipes for data where nothing is wrong are fitted
chances = (.25,.5,.75,1.)

# what an arm is

def by_chance(mixer):
    "`MixUp` or `CutMix` on a share of the batches"
    class Mixed(mixer):
        def __init__(self, p=1., **kwargs):
            super().__init__(**kwargs)
            self.p = p
        def before_batch(self):
            if torch.rand(1).item()<self.p: return super().before_batch()
            self.yb1,self.lam = tuple(self.learn.yb),torch.ones(1, device=self.x.device)
    return Mixed

def by_one_cycle(recipe, p):
    "A recipe with rates of its own, fitted as the others are"
    def arm(learn, epochs, lr): one_cycle(learn.add_cb(recipes[recipe](p=p)), epochs, lr)
    return arm

def random_cells(grid, rng, cells=0.1):
    "A control for `top_cells`: as many whole cells as it takes, at places that are drawn anew for each proxy"
    hot = top_cells(grid, cells).flatten(-2)
    order = torch.rand(hot.shape, generator=rng).argsort(-1).to(hot.device)
    return hot.gather(-1, order).view_as(grid)
random_cells.by_heat = False

twins = dict( # the controls with their chance, so that they get the same search as the recipes
    erasing=lambda p: partial(random_erasing, fit=one_cycle, p=p),
    mixup=lambda p: mixing_batches(by_chance(MixUp), p=p), cutmix=lambda p: mixing_batches(by_chance(CutMix), p=p))
twins |= { # each does what one recipe does without its heat: `random box` is the twin of saliencymix alone
    'random keep':lambda p: with_proxies('keep', rule='random_rest', p=p),
    'random rest':lambda p: with_proxies('vitamin', rule='random_rest', p=p),
    'snapmix by area':lambda p: with_proxies('snapmix', labels='mix_area', p=p), # its box is drawn at random, only its labels look
    'random box':lambda p: with_proxies('saliencymix', rule='box', fill='swap', p=p),
    'random cells':lambda p: with_proxies('attentive_cutmix', rule=random_cells, p=p)}
twins |= {o:partial(by_one_cycle, o) for o in ('default','background')}

def for_epochs(learn, epochs, lr, n): # as long as another arm has taken
    one_cycle(learn, n, lr)

def longer(n): return f'{baseline} ({n} epochs)'

def arm_of(name):
    "The arm of a name, also of `longer` and of a twin with its chance"
    what,n,p = re.fullmatch(r'(.*?)(?: \((\d+) epochs\)|\(p=(\d+\.?\d*|\.\d+)\))?', name).groups()
    if n and what==baseline: return partial(for_epochs, n=int(n))
    if p: refuse_number(0, 1, p=float(p)) # `MixUp` and `RandomErasing` would take any number
    return twins[what](float(p)) if p and what in twins else find_arm(name)

def searched(names):
    "Each recipe and each twin with every chance that is tried; what has none as it is"
    bare = [o.removesuffix('(p=0.5)') for o in names]
    return [o for name in bare for o in ([f'{name}(p={p})' for p in chances] if name in (*recipes,*twins) else [name])]

# what a run measures

class Curve(Callback):
    "Accuracy on the validation images after each epoch, and what it has cost: images trained on, seconds (of the processor on a CPU)"
    order,remove_on_fetch = Recorder.order+1,True
    def __init__(self): self.rows,self.trained,self.began = [],0,None
    def before_fit(self):
        self.clock = time.process_time if self.dls.device.type=='cpu' else time.perf_counter # others may be at work here
        self.began = self.began or self.clock()
    def after_batch(self):
        if self.training: self.trained += len(self.xb[0])
    def after_epoch(self): self.rows.append((self.recorder.values[-1][-1], self.trained, self.clock()-self.began))
    def numbers(self):
        "As `run_arm` keeps them, which counts the images that were trained on and only looked at by itself"
        said = {f'{k} {i:03d}':v for i,row in enumerate(self.rows, 1) for k,v in zip(('valid','images','seconds'), row)}
        return dict(busy=self.rows[-1][-1]) | said

def ece(probs, targs, bins=15):
    "Expected calibration error: how far confidence and accuracy lie apart, over bins of confidence"
    sure,pred = probs.max(1)
    at = (sure*bins).ceil().clamp(1, bins).long()-1
    apart = torch.zeros(bins, dtype=torch.double).index_add(0, at, (sure-(pred==targs).float()).double())
    return float(apart.abs().sum()/len(targs))

def pointing(learn, pictures):
    "Share of the test photographs whose hottest pixel of LayerCAM lies on the bird; masks under 8 % or over 80 % are left out"
    names,masks = [],[]
    for o in pictures.named('test'):
        mask = pictures.masks[pictures.at[o]]
        if .08<=mask.float().mean()<=.8: names,masks = [*names,o],[*masks,mask]
    heat = heat_on(learn, names, 'LayerCAM', target='label').cpu()
    return float(pointing_game(heat, torch.stack(masks)).mean())

def measured(pictures, tested, learn):
    "What a run says beside its accuracies"
    res = learn.curve.numbers()
    if not tested: return res
    with learn.removed_cbs([learn.recorder, learn.curve]): res['ece'] = ece(*learn.get_preds(dl=tests(pictures)['test'](learn)))
    if pictures.masks is not None: res['pointing'] = pointing(learn, pictures)
    return res

# many runs

class Runs:
    "Arms and seeds of a bed, and what is kept of them"
    def __init__(self, data, out, bed, tune=False, epochs=None, began=0., end=np.inf):
        self.out,self.name,self.tune = Path(out),f'{bed}-tuning' if tune else bed,tune
        self.bed,self.began,self.end = by_name(bed, beds, 'bed'),began,end
        self.epochs = epochs or self.bed.epochs
        self.out.mkdir(parents=True, exist_ok=True)
        self.pictures = Pictures(taken(data, out, self.bed.source))
        device = default_device()
        self.about = dict(bed=what_is(self.bed), epochs=self.epochs, versions=versions(), precision=str(half_type(device)),
                          device=torch.cuda.get_device_name() if device.type=='cuda' else 'cpu')

    @property
    def file(self): return self.out/f'{self.name}.jsonl'
    def failed(self, arm, seed): return self.out/'failed'/f'{self.name}_{arm}_{seed}.txt'

    def records(self): return read_records(self.file)
    def done(self):
        "(arm, seed) of what is there; results of another bed, machine or code are refused"
        for o in (recs := self.records()):
            refuse_other(f'{self.file} holds other results of {self.name}', o['about'], self.about, 'Name a new folder.')
        return {(o['arm'],o['seed']) for o in recs}

    def missing(self, names, seeds):
        "What nobody has trained, and what has not failed since this command began"
        there,late = self.done(),lambda f: f.exists() and f.stat().st_mtime>self.began
        return [(a,s) for s in seeds for a in names if (a,s) not in there and not late(self.failed(a, s))]

    def train(self, arm, seed):
        "One run"
        test = {'valid':lambda learn: learn.dls.valid} if self.tune else tests(self.pictures)
        make = lambda seed: learner(self.bed, self.pictures, seed).add_cb(Curve())
        rec = run_arm(make, arm_of(arm), arm, seed, self.epochs, self.bed.lr, test, lr_mult=10.,
                      measure=partial(measured, self.pictures, not self.tune))
        return rec|dict(about=self.about, bed=self.name)

    def take(self, arm, seed):
        "Train a run, unless another process does; what goes wrong is written down. Was it ours?"
        file = self.failed(arm, seed)
        file.parent.mkdir(exist_ok=True)
        lock = FileLock(file.with_suffix('.lock'))
        try: lock.acquire(timeout=0)
        except Timeout: return False
        with lock:
            if (arm,seed) not in self.missing([arm], [seed]): return False
            file.write_text('It was begun, and its process has ended.')
            try: self.append(self.train(arm, seed))
            except Exception: file.write_text(traceback.format_exc())
            else: file.unlink()
        return True

    def append(self, rec):
        "A record more, as a line of its own, also after a line that a kill has cut off"
        with FileLock(f'{self.file}.lock'):
            cut = self.file.exists() and self.file.read_bytes()[-1:] not in (b'',b'\n')
            with self.file.open('a') as f: f.write('\n'*cut+json.dumps(rec)+'\n')
        test = next(iter(rec['tests'].values()))
        print(f"{self.name:10} {rec['seed']:3} {rec['arm']:30} {100*test['accuracy']:5.1f} %  {rec['seconds']:6.1f} s", flush=True)

    def work(self, names, seeds):
        "Train what is missing until the time is over; a run that another process is at is left to it"
        for arm,seed in self.missing(names, seeds):
            if time.time()>self.end: return print('The time is over: no new run begins.', flush=True)
            self.take(arm, seed)

def read_records(file):
    "The runs of a file; a last line that a kill has cut off is told, and that run is missing"
    recs = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try: recs.append(json.loads(line))
        except ValueError: print(f'A line of {file.name} is cut off, and is left out.', flush=True)
    return recs

def in_processes(runs, names, seeds, n, command):
    "The same command in `n` processes; one that dies loses its run, and another takes its place"
    start = lambda: subprocess.Popen([*command, '--arms', ','.join(names), '--deadline', str(max(0., runs.end-time.time()))])
    alive = [start() for _ in range(min(n, len(runs.missing(names, seeds))))]
    while alive:
        time.sleep(.5)
        for p in [o for o in alive if o.poll() is not None]:
            alive.remove(p)
            if p.returncode and time.time()<runs.end and runs.missing(names, seeds): alive.append(start())
            if p.returncode: print(f'A process has ended with code {p.returncode}, see {runs.out/"failed"}.', flush=True)

def as_long(recs, epochs):
    "Plain fits as long as the arms have taken, in seconds: names of arms"
    own = [(o['arm'], o['measures']['busy']) for o in recs if not o['arm'].startswith(f'{baseline} (')]
    df = pd.DataFrame(own, columns=['arm','seconds'])
    each = df.groupby('arm').seconds.median()
    if baseline not in each: return []
    return list(dict.fromkeys(longer(n) for o in each if (n := round(epochs*o/each[baseline]))>epochs))

# what came of it

def rows(recs):
    "A row per run; what was measured after each epoch as one text"
    def row(o):
        last = {k:v for k,v in o['measures'].items() if not re.search(r' \d{3}$', k)}
        each = lambda k: (v for j,v in o['measures'].items() if re.fullmatch(rf'{k} \d{{3}}', j))
        after = {k:' '.join(f'{v:.5g}' for v in each(k)) for k in ('valid','images','seconds')}
        own = {k:o[k] for k in ('steps','seconds','proxies','proxy_seconds','trained','looked')}|last
        return dict(bed=o['bed'], arm=o['arm'], seed=o['seed'], **{k:t['accuracy'] for k,t in o['tests'].items()}, **own,
                    **{f'{k} by epoch':v for k,v in after.items()}, device=o['about']['device'])
    return pd.DataFrame([row(o) for o in recs]).round(5)

def reached(row, goal):
    "Images trained on until the validation accuracy was first as high; NaN: never"
    after = zip(*(map(float, row[f'{k} by epoch'].split()) for k in ('images','valid')))
    return next((images for images,valid in after if valid>=goal), np.nan)

def convergence(df, share=.95):
    "Images to `share` of what the baseline ends with: how many times as many, paired by seed, on a log scale; a row per arm"
    goal = share*df['valid by epoch'][df.arm==baseline].str.split().str[-1].astype(float).mean()
    df = df.assign(images=df.apply(reached, axis=1, goal=goal))
    wide,res = np.log(df.pivot(index='seed', columns='arm', values='images')),{}
    for arm in dict.fromkeys(df.arm):
        found = paired((wide[arm]-wide[baseline]).dropna())
        res[arm] = dict(images=float(np.exp(wide[arm].mean())), seeds=int(wide[arm].notna().sum()),
                        **{k:float(np.exp(found[o])) for k,o in dict(times='diff', lo='lo', hi='hi').items()})
    return pd.DataFrame.from_dict(res, 'index').rename_axis('arm')

def statistics(recs, bed):
    "Paired differences, intervals and Holm of all that is measured: a row per arm, test and metric"
    cmp,tables = Comparison.of(recs, baseline),[]
    for metric in ('accuracy','loss','ece','pointing','busy'):
        if metric not in cmp.df or cmp.df[metric].isna().all(): continue
        s = cmp.stats(metric)
        if metric not in ('accuracy','loss'): s = s[s.test==cmp.tests[0]] # of a run, not of a test set
        tables.append(s[s.test!='worst group'].assign(metric=metric).drop(columns='which', errors='ignore'))
    far = convergence(rows(recs)).reset_index().rename(columns=dict(images='mean', seeds='n', times='diff'))
    return pd.concat([*tables, far.assign(metric='images to 95 %', test='valid')]).assign(bed=bed)

def said(stats):
    "The statistics as one reads them: an arm a line, differences in points with their intervals"
    def cell(r):
        lo,hi = (r.lo,r.hi) if pd.isna(r.lo_images) else (r.lo_images,r.hi_images)
        gap = '' if pd.isna(r['diff']) or r.arm==baseline else f"{100*r['diff']:+.2f} [{100*lo:+.2f}, {100*hi:+.2f}] p {r.p_holm:.2g}"
        return f"{100*r['mean']:.2f} {gap}"
    s = stats[stats.metric.isin(('accuracy','ece','pointing'))]
    s = s.assign(column=np.where(s.metric=='accuracy', s.test, s.metric), said=s.apply(cell, axis=1))
    table = s.pivot(index='arm', columns='column', values='said')
    table = table.reindex(index=list(dict.fromkeys(s.arm)), columns=list(dict.fromkeys(s.column)))
    slow = stats[stats.metric=='busy'].set_index('arm')['mean']
    near = stats[stats.metric=='images to 95 %'].set_index('arm')['diff']
    first = s[s.metric=='accuracy'].drop_duplicates('arm').set_index('arm')
    return table.assign(seeds=first.n, seconds=(slow/slow[baseline]).round(2), images=near.round(2))

def chosen_of(recs):
    "Of each arm the setting that is best on validation images, in the mean over the seeds: of those that have the most seeds"
    bare = lambda arm: re.sub(r'\(p=[\d.]+\)$', '', arm)
    df = pd.DataFrame([dict(arm=o['arm'], what=bare(o['arm']), valid=o['tests']['valid']['accuracy']) for o in recs])
    s = df.groupby(['what','arm'], sort=False).valid.agg(['mean','size']).reset_index().sort_values(['size','mean'], ascending=False)
    return s.drop_duplicates('what').set_index('what').sort_values('mean', ascending=False).round(4)

def gather(out, csv):
    "Write the tables of all that is there, and say the second; tuning has a table of its own, and `gain_chosen.json` what it came to"
    csv = Path(csv)
    for file in sorted(Path(out).glob('*.jsonl')):
        if not (recs := read_records(file)): continue
        tuned = file.stem.endswith('-tuning')
        keep_table(rows(recs), csv.with_name('gain_tuning.csv') if tuned else csv, ['bed','arm','seed','device'])
        if tuned:
            best = chosen_of(recs)
            write_json(csv.with_name('gain_chosen.json'), best.arm.to_dict(), indent=1)
            print(f'\n{file.stem}: chosen on validation images\n{best.to_string()}', flush=True)
        if tuned or baseline not in {o['arm'] for o in recs}: continue
        s = statistics(sorted(recs, key=lambda o: (o['arm']!=baseline, o['arm'], o['seed'])), file.stem)
        print(f'\n{file.stem}\n{said(s).to_string()}', flush=True)
        keep_table(s.round(5), csv.with_name('gain_stats.csv'), ['bed','metric','test','arm'])

def seeds_of(text):
    "As 11-15 or 1,2,7"
    parts = [[int(v) for v in o.split('-')] for o in text.split(',')]
    return [s for o in parts for s in range(o[0], o[-1]+1)]

@call_parse
def main(data:str, # Folder of the real data
         out:str, # Pixels and records are kept here
         bed:str='cifar2000', # One of `beds`, or several, separated by commas
         arms:str='', # Arms, as "no proxy,snapmix(p=0.5)"; none: the usual ones
         chosen:str='', # Take each of the arms as this file, `gain_chosen.json`, has it
         seeds:str='11-15', # As 11-15 or 1,2,7
         processes:int=1, # At once
         deadline:float=1e9, # Seconds after which no new run begins
         epochs:int=0, # 0: those of the bed
         tune:store_true=False, # Search the chance `p` of every recipe, on validation images alone
         equal_seconds:store_true=False, # Also the plain fit for as many seconds as each arm has taken
         gather_only:store_true=False, # Train nothing, only write the tables of what is there
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes, the others beside it
         began:float=0., # Set for the processes that this one begins
):
    "Train every arm with every seed on a bed where nothing is wrong"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    start,mine = time.time(),not began
    names,each = split_arms(arms) if arms else list(usual),seeds_of(seeds)
    if tune: names = searched(names)
    if chosen:
        best = json.loads(Path(chosen).read_text())
        names = [best.get(o.removesuffix('(p=0.5)'), o) for o in names]
    for o in names: arm_of(o) # refuses here what it would refuse later
    for o in bed.split(',') if not gather_only else ():
        runs = Runs(data, out, o, tune, epochs, began or start, start+deadline)
        more = [*(['--tune'] if tune else []), *(['--epochs', str(epochs)] if epochs else [])]
        command = [sys.executable, __file__, data, str(out), '--bed', o, '--seeds', seeds, '--began', str(runs.began), *more]
        go = partial(in_processes, runs, n=processes, command=command) if processes>1 else runs.work
        go(names=names, seeds=each)
        if equal_seconds and (extra := as_long(runs.records(), runs.epochs)): go(names=extra, seeds=each)
    if mine: gather(out, csv)
