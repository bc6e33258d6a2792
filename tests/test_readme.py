"What the README says: its code uses names that are there, and its numbers are those of the benchmarks"
import ast, builtins, inspect, re
from pathlib import Path
import pandas as pd, pytest
import fastai.vision.all as fastai
import proxy_attention.all as ours
from proxy_attention.experiment.compare import Comparison, paired
from proxy_attention.interpret.probe import leaning, leans_on
from test_package import readme

root = Path(__file__).parent.parent
text = readme()

# ---- code

yours = 'other files masks boxes model xb old make_learner'.split() # what a reader brings
made = dict(learn=fastai.Learner, interp=ours.ProxyInterpretation, cmp=ours.Comparison, ProxyAttention=ours.ProxyAttention)
nodes = [o for code in re.findall(r'^```python\n(.*?)^```', text, flags=re.S|re.M) for o in ast.walk(ast.parse(code))]

def test_names_of_the_readme_are_there():
    names = [o for o in nodes if isinstance(o, ast.Name)]
    known = {*yours, *dir(builtins), *vars(fastai), *vars(ours), *(o.id for o in names if isinstance(o.ctx, ast.Store))}
    assert len(names)>50 and not {o.id for o in names}-known

def test_methods_of_the_readme_are_there():
    asked = {(o.value.id, o.attr) for o in nodes if isinstance(o, ast.Attribute) and getattr(o.value, 'id', None) in made}
    assert len(asked)>9 and not [o for o in asked if not hasattr(made[o[0]], o[1])]

def called(o):
    "What a call of the README calls: a method of a learner, a comparison …, or a function"
    if isinstance(o.func, ast.Name): return vars(ours).get(o.func.id)
    return getattr(made.get(getattr(o.func.value, 'id', None), fastai.Learner), o.func.attr, None)

def test_arguments_of_the_readme_are_there():
    calls = [(o,called(o)) for o in nodes if isinstance(o, ast.Call) and o.keywords]
    known = [(o,inspect.signature(f).parameters) for o,f in calls if callable(f)]
    assert len(known)>7
    for o,taken in known:
        free = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        assert free or {k.arg for k in o.keywords}<=set(taken), ast.unparse(o)

# ---- numbers

def measured(name): return pd.read_csv(root/'benchmarks'/f'{name}.csv', keep_default_na=False, na_values=[''])
def spread(v): return f'{100*v.mean():.1f} ± {100*v.std():.1f} %'
def minus(d): return f"{100*d['diff']:+.1f} [{100*d['lo']:+.1f}, {100*d['hi']:+.1f}]".replace('-', '−')

def row_of(of, new, old, d):
    "The row of the README's table of results, as the numbers have it"
    row, = (o for o in text.splitlines() if f'`{of}`: {spread(new)}' in o)
    assert f'| {spread(old)} |' in row and f'| {minus(d)} | {len(new)} |' in row.replace('**', '')

def bed(part, name):
    df = measured('evidence').query('part==@part and bed==@name')
    return df,Comparison(df, 'no proxy').stats().set_index(['test','arm'])

@pytest.mark.parametrize('part,name,test', [('all_arms','two_colours','flipped'), ('clean','mnist_1k','plain')])
def test_results_of_shortcut(part, name, test):
    df,s = bed(part, name)
    by = df[df.test==test].pivot(index='seed', columns='arm', values='accuracy')
    row_of('shortcut()', by['shortcut'], by['no proxy'], s.loc[test,'shortcut'])

def test_what_shortcut_does_on_other_images():
    _,s = bed('all_arms', 'two_colours')
    plain,aligned = s.loc['plain','shortcut'],s.loc['aligned','shortcut']
    assert f"costs {-100*aligned['diff']:.1f} points" in text and f"gains {100*plain['diff']:.1f} points" in text
    assert f'{len(s.loc["plain"])-1} arms (p = {plain.p_holm:.3f})' in text and plain.verdict=='no effect shown'

def test_what_masking_costs():
    df,s = bed('clean', 'mnist_1k')
    assert f"`shortcut()` costs {-100*s.loc['plain','shortcut']['diff']:.0f} points" in text and not (s.verdict=='helps').any()
    assert s.loc['plain','probed']['diff']==0 and (df[df.arm=='probed'].proxies==0).all()

exact = { # recipe → the arm that differs from it in nothing but what looks; measured on digits
    'vitamin':'random rest(p=0.5)', 'keep':'keep(rule=random_rest,p=0.25)', 'attentive_cutmix':'random cells(p=0.25)',
    'snapmix':'snapmix(labels=mix_area,p=0.25)', 'saliencymix':'random box(p=0.25)'}

def by_heat(bed, on):
    "Accuracy of each seed and arm where nothing was planted"
    df = measured('gain').query('bed==@bed and device==@on')
    df = df[~df.arm.isin([o for k,o in exact.items() if k!='saliencymix'])] # another probability than the main arm of that name
    return df.assign(arm=df.arm.str.replace(r'\(p=.*', '', regex=True)).pivot(index='seed', columns='arm', values='test')

gpu = 'NVIDIA H200'
honest = {'MNIST, 1,000 images':('mnist1000','cpu'), 'birds (CUB)':('cub',gpu), 'ten photographs per species':('cub10',gpu)}

def measured_p(recipe):
    "The probabilities `p` with which a recipe was measured: they are in the name of its arm"
    return {float(o) for o in measured('gain').arm.str.extract(rf'^{recipe}\(p=([\d.]+)\)$')[0].dropna()}

twins_of = dict(keep='erasing', vitamin='random rest') | dict.fromkeys(('snapmix','saliencymix','attentive_cutmix'), 'random box')
@pytest.mark.parametrize('recipe,twin', twins_of.items())
def test_recipes_say_what_was_measured(recipe, twin):
    assert measured_p(recipe)=={ours.recipes[recipe]().p}=={getattr(ours.ProxyAttention, recipe)().p}
    for name,where in honest.items():
        df = by_heat(*where)
        plain,random = (minus(paired(df[recipe]-df[o])) for o in ('one cycle',twin))
        assert f'{name} {plain}, {random}' in ours.recipes[recipe].evidence

@pytest.mark.parametrize('recipe', exact)
def test_recipes_say_what_looking_adds_to_the_exact_twin(recipe):
    df = measured('gain').query("bed=='mnist1000'").pivot(index='seed', columns='arm', values='test')
    d = minus(paired(df[f"{recipe}(p={ours.recipes[recipe]().p})"]-df[exact[recipe]]))
    said = 'a box in a random place: MNIST, 1,000 images' if recipe=='saliencymix' else f'on digits beside the exact twin {d}'
    assert said in ours.recipes[recipe].evidence and d in ours.recipes[recipe].evidence

def test_what_augmentations_by_heat_gain():
    digits,birds,few = (by_heat(*o) for o in honest.values())
    gain = lambda df,arm: paired(df[arm]-df['one cycle'])
    assert all(minus(gain(o, 'default')) in ours.recipes['default'].evidence for o in (digits,birds,few))
    assert measured_p('default')=={ours.ProxyAttention().p}
    cost,least,most = minus(gain(digits, 'default')).strip('−]').replace(' [', ', ').split(', ')
    fewest = by_heat('cub5', gpu)
    assert (f"`ProxyAttention()` costs {cost} on 1,000 digits ([{least}, {most}], not significant after the correction), and "
            f"{-100*gain(few, 'default')['diff']:.1f} or {-100*gain(fewest, 'default')['diff']:.1f} on birds with ten or five") in text

def in_points(r): # bold if it counts after the correction for all arms
    said = f"{100*r['diff']:+.1f}".replace('-', '−')
    return f'**{said}**' if r.p_holm<.05 else said

@pytest.mark.parametrize('row,bed', [
    ('birds (CUB), 26 photographs per species','birds (CUB)'), ('MNIST, 1,000 digits','MNIST, 1,000 images'),
    ('birds, ten per species','ten photographs per species'), ('birds, five per species','five'),
    ('CIFAR-10, 2,000 photographs','CIFAR-10')])
def test_the_table_of_gains(row, bed):
    wide = by_heat(*(honest|dict(five=('cub5',gpu))).get(bed, ('cifar2000','cpu')))
    wide = wide[[o for o in wide if 'epochs' not in o and o!='probed']]
    assert len(wide)==(10 if 'MNIST' in row else 5) and set(wide.columns[wide.isna().any()])==({'cutmix','mixup'} if bed=='five' else set())
    df = wide.stack().rename('accuracy').reset_index()
    df = df.assign(test='test', worst=float('nan'), steps=1, seconds=1., trained=1, looked=0)
    s = Comparison(df, 'one cycle').stats().query("test=='test'").set_index('arm')
    arms = 'erasing','cutmix','attentive_cutmix','snapmix','vitamin','keep','default'
    assert f"| {row} | {100*s['mean']['one cycle']:.1f} % | {' | '.join(in_points(s.loc[o]) for o in arms)} |" in text

def test_a_transformer_and_a_cnn_with_few_images():
    vit,cnn = by_heat('vit2000', 'cpu'),by_heat('cifar2000', 'cpu')
    behind,lost = cnn['one cycle'].mean()-vit['one cycle'].mean(),-paired(vit['snapmix']-vit['one cycle'])['diff']
    assert len(vit)==5 and f'a small transformer is {100*behind:.0f} points behind the ResNet' in text
    assert f'(five seeds each; `snapmix` costs it {100*lost:.1f} points)' in text
    for df in (vit,cnn): assert not any(paired(df[o]-df['one cycle'])['lo']>0 for o in ('attentive_cutmix','snapmix'))

def test_what_is_recommended_where_nothing_is_wrong_costs_little():
    tables = [by_heat(*o) for o in (*honest.values(), ('cifar2000','cpu'))]
    costs = {o:[-100*paired(df[o]-df['one cycle'])['diff'] for df in tables] for o in twins_of}
    assert [o for o,v in costs.items() if max(v)<=.3]==['keep'] and f'up to {max(map(max, costs.values())):.1f} points on some' in text
    mixed = [costs[o][-1] for o in ('snapmix','saliencymix','attentive_cutmix')]
    assert all(f'cost {min(mixed):.1f} to {max(mixed):.1f} points' in ours.recipes[o].fails for o in ('snapmix','attentive_cutmix'))
    later = measured('gain_later').query("bed=='cifar2000' and arm=='vitamin(p=0.25)'").set_index('seed')
    less = f"{-100*paired(later.test-by_heat('cifar2000', 'cpu')['one cycle'])['diff']:.1f}"
    assert f'on a quarter of them it loses {less} points on CIFAR-10' in text
    assert f"On 2,000 images of CIFAR-10 it cost {costs['vitamin'][-1]:.1f} points (with p=0.25 {less})" in ours.recipes['vitamin'].fails

def test_results_of_the_background():
    df = measured('head_only').query("bed=='0.95' and test!='valid'")
    worst = df.groupby(['arm','seed']).accuracy.min().unstack('seed').dropna().T
    new,old = worst['background, heat at 224 px'],worst['plain']
    row_of("fit_head('background')", new, old, paired(new-old))
    whole = measured('waterbed_cure').query("bed=='0.95' and test!='valid'").groupby(['arm','seed']).accuracy.min().unstack('arm')
    assert (whole['rehearsed']==whole['no proxy'])[whole['rehearsed'].notna()].all()
    row_of('background()', whole['background'], whole['no proxy'], paired(whole['background']-whole['no proxy']))
    by_otsu = whole['background, ImageNet heat at 128 px, otsu']
    row_of('background(…)', by_otsu, whole['no proxy'], paired(by_otsu-whole['no proxy']))
    assert f'{spread(by_otsu)} with heat of the pretrained network' in ours.recipes['background'].evidence
    natural = measured('waterbed_cure').query("bed=='natural' and test!='valid'")
    natural = natural.groupby(['arm','seed']).accuracy.min().unstack('arm')
    natural = natural[['no proxy','background, ImageNet heat at 128 px, otsu']].dropna()
    before,after = 100*natural.mean()
    assert f'rose from {before:.1f} to {after:.1f} % (ten seeds)' in text and len(natural)==10
    by_name = measured('suspect').query("bed=='clean, by name' and test=='plain'").groupby('arm').accuracy.mean()
    lost = f"{100*(by_name['no proxy']-by_name['background']):.1f}"
    assert f'and on photographs without one, `background()` {lost};' in text
    assert f'{lost} points of accuracy on 245 photographs without a shortcut' in ours.recipes['background'].cost
    assert f"AFR, a published repair, has {spread(worst['afr'])}, which is not shown to differ" in text
    assert paired(new-worst['afr'])['verdict']=='no effect shown'


def test_results_of_other_last_layers():
    by = measured('head_only').query("test!='valid'").pivot(index=['bed','arm','seed'], columns='test', values='accuracy')
    gap = (by['waterbird/water']-by['waterbird/land']).xs('natural').unstack('arm')[['plain','background, ImageNet heat']]*100
    said = [f'{o.mean():.1f} ± {o.std():.1f}'.replace('-', '−') for o in (gap['plain'],gap['background, ImageNet heat'])]
    assert len(gap.dropna())==10 and f"than on land by {said[0]} points, and by {said[1]} with" in text
    worst = by.min(axis=1).unstack('arm')[['plain','twenty boxes']].dropna()
    found = worst['twenty boxes']!=worst['plain']
    assert found['0.95'].tolist().count(True)==8 and len(found['0.95'])==10 and not found['0.5'].any()
    named = 'With boxes around twenty birds, `fit_head(objects=boxes)` found it on eight of ten seeds'
    assert f"{named} ({spread(worst['plain']['0.95'])[:-2]} → {spread(worst['twenty boxes']['0.95'])})" in text

def test_the_demo():
    flipped,plain = (measured('demo_seeds').pivot(index='seed', columns='arm', values=o) for o in ('flipped','plain'))
    assert f"{100*flipped.without.mean():.0f} ± {100*flipped.without.std():.0f} % and {spread(flipped['shortcut()'])}" in text
    assert f"from {spread(plain.without)} to {spread(plain['thesis()'])} on digits without a patch" in text

def test_a_square_on_fresh_seeds():
    df = measured('confirmed').query("bed=='two_colours' and arm=='rehearsed' and test=='flipped'")
    assert len(df)==10
    assert f"on ten fresh ones `fit_proxy`, without any settings, has {spread(df.accuracy)} with a misleading square" in text

def test_how_often_the_probe_is_right():
    df = measured('probe_rule').query('number%2==1 and learned')
    chance = df.chance.fillna(1/df.classes)
    skill = ((df.valid-chance)/(1-chance)).mask((df.number>=100) & df.cue.str.contains('background'), 1.)
    places = [o for o in df if o.startswith('hot_carried') and float(o.split('_')[-1])<=.1]
    def kinds(o):
        carried = dict(rest=o['rest_carried_0.3'], edge=o['edge_carried_0.81'], look=o['look_carried_1'], place=o[places].max())
        return {*leans_on(carried, o.cells>=4 and o.edge_class>=leaning['often'])} if skill[o.name]>=leaning['skill'] else set()
    said,gap = df.apply(kinds, axis=1),df.aligned-df.flipped
    planted = df.cue.isin(['text','ring','frame','background','cast','blur','jpeg']) # the others reveal no label
    honest,leans = said[(gap<.1) | ~planted],said[(gap>=.2) & planted]
    small = leans[df.cue.isin(['text','ring','frame'])]
    def without_look(o): return o.map(lambda found: bool(found-{'look'})).sum()
    assert f'it found {without_look(leans)} of {len(leans)} networks with a shortcut' in text
    assert f'({without_look(small)} of {len(small)} small places and borders' in text
    assert f'wrong for {without_look(honest)} of {len(honest)} networks without one' in text
    assert f'it found {leans.map(bool).sum()}, and was wrong for {honest.map(bool).sum()}.' in text

def test_what_was_not_found():
    found = measured('confirmed').query("arm=='rehearsed' and test=='flipped'").assign(found=lambda o: o.proxies>0).groupby('bed').found
    assert found.agg(['sum','size']).loc[['decoy','dominoes_95','dominoes_100']].values.tolist()==[[0,10],[5,10],[7,10]]
    assert ('missed Decoy MNIST, whose cue is learned after the digit, on ten of ten seeds, '
            'and Dominoes, whose cue fills half of the image, on eight of twenty') in text

def test_photographs():
    df = measured('suspect').query('seed<=30')
    by = df.pivot(index='seed', columns=['bed','test','arm'], values='accuracy')
    new,old = (by['bees','flipped',o] for o in ('rehearsed','no proxy'))
    row_of('fit_proxy(8)', new, old, paired(new-old))
    assert f"networks have {spread(by['clean','plain','no proxy'])}" in text
    plain,without = (by['bees','plain',o] for o in ('rehearsed','no proxy'))
    assert f"without a watermark, {spread(plain)} instead of {spread(without)})" in text
    assert f"({spread(by['frame','flipped','no proxy'])[:-2]} → {spread(by['frame','flipped','rehearsed'])})" in text
    fresh = measured('suspect').query("bed=='clean' and seed>40 and arm=='rehearsed' and test=='plain'")
    treated = df.query("bed=='clean' and arm=='rehearsed'").proxies>0
    assert len(fresh)==10 and (fresh.proxies==0).all() and (treated.sum(),len(treated))==(5,10)
    assert 'changed nothing on ten of ten seeds; before the last change of the probe, it treated half of the networks' in text
    named = measured('suspect').query("bed=='cast' and test=='flipped' and seed>30").pivot(index='seed', columns='arm', values='accuracy')
    assert len(named)==5 and f"({spread(named['no proxy'])[:-2]} → {spread(named['look'])}, five seeds)" in text
    tuned = measured('suspect').query("bed=='bees, fine-tuned'")
    fine = tuned.pivot(index='seed', columns=['test','arm'], values='accuracy')
    said = f"({spread(fine['flipped','no proxy'])} where it is misleading, {spread(fine['plain','no proxy'])} without it, five seeds)"
    assert said in text and len(fine)==5 and not tuned.proxies.any()
    cast = by['cast','flipped','rehearsed']-by['cast','flipped','no proxy']
    assert (cast==0).sum()==9 and cast.min()<-.1 and 'did nothing on nine of ten seeds, and harm on one' in text

def test_time_and_memory():
    df = measured('attribution').query("net=='resnet18' and case=='gradient'").set_index(['batch','way'])
    some = {k:df.loc[32,k] for k in ('GradCAM','forward','torchcam GradCAM','captum LayerGradCam','pytorch-grad-cam GradCAM')}
    ours,plain,torchcam,captum,grad_cam = some.values()
    assert (f'{ours.ratio:.2f} × the time of a plain forward pass (less, since it computes with channels last), '
            f'and {ours.peak_mb:.0f} MB in addition to its {plain.peak_mb:.0f} MB '
            f'(torchcam {torchcam.ratio:.2f} × and {torchcam.peak_mb:.0f} MB, captum {captum.ratio:.2f} × and {captum.peak_mb:.0f} MB, '
            f'pytorch-grad-cam {grad_cam.ratio:.1f} × and {grad_cam.peak_mb:.0f} MB)') in text
    assert f"({df.loc[1,'torchcam GradCAM'].ratio:.1f} × against {df.loc[1,'GradCAM'].ratio:.1f} ×)" in text
    step = measured('proxy_step').set_index('case')
    for k in ('running','exact'): assert f"{step.ratio[f'{k} losses, full precision']:.2f}" in text
    assert f"{step.store_bytes_an_item['10000 items']:.0f} bytes per image" in text
    fits = step[step.part=='fit']
    renewed = fits[fits.index.str.endswith('renewed every fifth epoch')]
    assert f'takes {renewed.ratio.min():.2f} to {renewed.ratio.max():.2f} × the time of a plain epoch' in text
    own,plain = (fits.images_s[f'snapmix, {o}'] for o in ('heat renewed every fifth epoch','the plain epochs between'))
    assert f'`snapmix` {own:.1f} images per second instead of {plain:.1f}' in text

def test_all_photographs_of_cifar():
    df = by_heat('cifar4', 'cpu')
    lost = {o:-100*paired(df[o]-df['one cycle'])['diff'] for o in ('attentive_cutmix','cutmix')}
    assert len(df)==5
    assert f"`attentive_cutmix` costs {lost['attentive_cutmix']:.1f} points and CutMix {lost['cutmix']:.1f} (five seeds)" in text
