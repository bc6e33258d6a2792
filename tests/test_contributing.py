"What CONTRIBUTING.md says about adding things, done as it says"
import re
from pathlib import Path
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import attributions
from proxy_attention.data.cues import cues
from proxy_attention.experiment.arms import arms, controls, find_arm
from proxy_attention.masking.fills import fills
from proxy_attention.masking.rules import rules

text = (Path(__file__).parent.parent/'CONTRIBUTING.md').read_text(encoding='utf-8')
_,_,said = text.partition('## How to add something')
steps = dict(re.findall(r'^\*\*(?:A|An) (.+?)\*\*.*?^```python\n(.*?)^```', said.partition('\n## ')[0], re.M|re.S))
kinds = ['CAM or another attribution','rule','fill','schedule','recipe','arm','bed','section of the report']

@pytest.fixture
def added():
    "All that the section adds; afterwards it is gone again"
    known = attributions,rules,fills,recipes,controls,cues
    was,named = [dict(o) for o in known],{*vars(ProxyAttention)}
    space = {}
    for o in steps.values(): exec(o, space)
    yield space
    for o,old in zip(known, was):
        o.clear()
        o.update(old)
    for o in {*vars(ProxyAttention)}-named: delattr(ProxyAttention, o)

def test_every_kind_has_its_step(): assert list(steps)==kinds

def test_an_attribution_a_rule_a_fill_and_a_schedule(few, added, quiet):
    pa = ProxyAttention(select='all', attribution='SquaredGradCAM', rule='colder_half', fill='negative', max_area=1.,
                        steps=added['powers_of_two'], p=1.)
    learn = quiet(digits_learner(few, cbs=pa), 'fit', 5, 1e-3)
    assert learn.proxy_attention.history.epoch.tolist()==[0,1,3] and learn.proxy_attention.history.made.sum()==3*64
    assert pa.log.area.between(.45, .65).all() and 'SquaredGradCAM' in pa.log.method.iloc[0]

def test_a_recipe_is_an_arm_and_a_class_method(few, added, quiet):
    learn = digits_learner(few)
    with learn.no_bar(), learn.no_logging(): arms['border_only'](learn, 3, 1e-3)
    assert learn.proxy_attention.history.made.tolist()==[64]
    assert ProxyAttention.border_only().asked['width']==.1 and 'inside the image' in recipes['border_only']._repr_markdown_()

def test_an_arm(few, added):
    learn = digits_learner(few)
    with learn.no_bar(), learn.no_logging(): find_arm('mixup')(learn, 2, 1e-3)
    assert learn.epoch==1 and any(type(o).__name__=='MixUp' for o in learn.cbs)

def test_a_cue_of_a_bed(few, added):
    grey = np.full((40,28,28,3), 90, np.uint8)
    bed = planted((list(grey), ['a','b']*20), cue='stripe', size=28, n_train=20, n_test=8)
    for part,there in dict(train=True, plain=False).items():
        imgs = [np.asarray(Image.open(o)) for o in get_image_files(bed/part)]
        assert all((o.min((0,2))>200).any()==there for o in imgs)

def test_a_section(few, added, tmp_path):
    run = train_folder(few, tmp_path, arch='test_resnet', pretrained=False, size=28, bs=20, recipe='none',
                       epochs=1, seed=7, workers=0, say=noop)
    page = Report(run, n=0, sections=added['sections']).html()
    assert 'seed 7' in page and page.count('>Seeds<')==2

def test_without_the_section_its_names_are_not_known():
    assert 'stripe' not in cues and not hasattr(ProxyAttention, 'border_only')
    with pytest.raises(ValueError, match='SquaredGradCAM'): ProxyAttention(attribution='SquaredGradCAM')
