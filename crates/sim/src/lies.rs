//! Coordinators that lie in a round of secure aggregation, each in one way.
//!
//! Whatever they say, a node answers for one set of survivors or raises an alarm: either the exact sum of the survivors comes
//! out, or the attempt is given up by name. The witness counts all answers and knows what would open one update.

use aivillage_base::NodeName;
use aivillage_base::wire::secure::{Hex, SecureDown};
use aivillage_base::wire::{Down, Peer, RoundKey};

use crate::conduct::Conduct;

/// One way to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Another masking key stands under somebody's name.
    ReplacedKey,
    /// Two participants' masking keys change places.
    SwappedKeys,
    /// Somebody is missing on the roster that one half is shown.
    SplitRoster,
    /// Another nonce stands under somebody's name, so that the graph is another one.
    ForgedNonce,
    /// One half is not shown somebody's nonce.
    SplitNonces,
    /// Two boxes change places.
    ForeignBoxes,
    /// One half is told that somebody left who is still there.
    SplitSurvivors,
    /// Only two have survived.
    FewSurvivors,
    /// A stranger has survived.
    Stranger,
    /// The receiver's own input, which has arrived, is declared lost.
    LostInput,
    /// Another set of survivors after the first one was agreed to.
    SecondSet,
    /// One word is not its owner's.
    ForgedAgreement,
    /// Fewer words than the threshold.
    FewAgreements,
    /// Half of the cohort trains otherwise.
    OtherTerms,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::ReplacedKey,
        Self::SwappedKeys,
        Self::SplitRoster,
        Self::ForgedNonce,
        Self::SplitNonces,
        Self::ForeignBoxes,
        Self::SplitSurvivors,
        Self::FewSurvivors,
        Self::Stranger,
        Self::LostInput,
        Self::SecondSet,
        Self::ForgedAgreement,
        Self::FewAgreements,
        Self::OtherTerms,
    ];
}

/// A coordinator that lies in this way.
#[derive(Debug, Clone, Copy)]
pub struct Liar {
    /// How.
    pub lie: Lie,
    /// In first attempts only (or whenever it can)?
    pub once: bool,
}

impl Conduct for Liar {
    fn tells(&self, to: &Peer, node: usize, message: Down) -> Down {
        let half = node.is_multiple_of(2);
        let mut message = message;
        if let Down::Invite(invitation) = &mut message
            && self.lie == Lie::OtherTerms
            && half
            && self.lies(&invitation.key)
        {
            invitation.training.learning_rate *= 2.0;
        }
        if let Down::Secure { key, message } = &mut message
            && self.lies(key)
        {
            self.change(to, half, message);
        }
        message
    }
}

impl Liar {
    fn lies(self, key: &RoundKey) -> bool {
        !self.once || key.attempt == 1
    }

    fn change(self, to: &Peer, half: bool, message: &mut SecureDown) {
        let other = |names: &[NodeName]| names.iter().rposition(|name| *name != to.name);
        match (self.lie, message) {
            (Lie::ReplacedKey, SecureDown::Roster { adverts }) => {
                if let Some(advert) = adverts.iter_mut().find(|advert| advert.peer != *to) {
                    advert.mask_key = Hex([9; 32]);
                }
            }
            (Lie::SwappedKeys, SecureDown::Roster { adverts }) => {
                let mut others = adverts.iter_mut().filter(|advert| advert.peer != *to);
                if let (Some(a), Some(b)) = (others.next(), others.next()) {
                    std::mem::swap(&mut a.mask_key, &mut b.mask_key);
                }
            }
            (Lie::SplitRoster, SecureDown::Roster { adverts }) if half => {
                if let Some(at) = adverts.iter().rposition(|advert| advert.peer != *to) {
                    adverts.remove(at);
                }
            }
            (Lie::ForgedNonce, SecureDown::Reveals { reveals }) => {
                if let Some(revealed) = reveals.iter_mut().find(|revealed| revealed.name != to.name) {
                    revealed.nonce = Hex([9; 32]);
                }
            }
            (Lie::SplitNonces, SecureDown::Reveals { reveals }) if half => {
                if let Some(at) = reveals.iter().rposition(|revealed| revealed.name != to.name) {
                    reveals.remove(at);
                }
            }
            (Lie::ForeignBoxes, SecureDown::Boxes { boxes, .. }) => {
                if let [a, b, ..] = &mut boxes[..] {
                    std::mem::swap(&mut a.sealed, &mut b.sealed);
                }
            }
            (Lie::SplitSurvivors, SecureDown::Survivors { survivors }) if half => {
                if let Some(at) = other(survivors) {
                    survivors.remove(at);
                }
            }
            (Lie::FewSurvivors, SecureDown::Survivors { survivors }) => survivors.truncate(2),
            (Lie::Stranger, SecureDown::Survivors { survivors }) => {
                survivors.extend(NodeName::new("zz-stranger"));
            }
            (Lie::LostInput, SecureDown::Survivors { survivors }) => survivors.retain(|name| *name != to.name),
            (Lie::SecondSet, message @ SecureDown::Agreements { .. }) => {
                let SecureDown::Agreements { agreed } = &*message else { return };
                let mut survivors: Vec<NodeName> = agreed.iter().map(|word| word.name.clone()).collect();
                if let Some(at) = other(&survivors) {
                    survivors.remove(at);
                }
                *message = SecureDown::Survivors { survivors };
            }
            (Lie::ForgedAgreement, SecureDown::Agreements { agreed }) => {
                if let Some(word) = agreed.iter_mut().find(|word| word.name != to.name) {
                    word.signature = Hex([1; 64]);
                }
            }
            (Lie::FewAgreements, SecureDown::Agreements { agreed }) => agreed.truncate(1),
            _ => {}
        }
    }
}
